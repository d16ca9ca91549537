"""The files of cluster/ without a cluster: each is as it must be, and broken copies are found."""

import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster.rules import (
    CLUSTER,
    CODE,
    ROOT,
    image_faults,
    kubernetes_faults,
    lock,
    ray_environment,
    ray_faults,
    schema_faults,
    slurm_faults,
    text_faults,
)

RAY = ("aws", "gcp", "on_premises")
SLURM = ("pretrain.sbatch", "ray.sbatch")
KUBERNETES = ("raycluster", "rayjob", "network", "storage")


def read(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def broken(text: str, old: str, new: str) -> str:
    assert old in text, f"nothing to break: {old}"
    return text.replace(old, new)


def test_no_file_holds_a_secret_or_a_public_address():
    files = [path for path in CLUSTER.rglob("*") if path.is_file()]
    assert len(files) > 15
    found = {
        str(path.relative_to(ROOT)): faults
        for path in files
        if (faults := text_faults(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef",
        'export RAY_AUTH_TOKEN="correct-horse-battery"',
        "{name: RAY_AUTH_TOKEN, value: correct-horse-battery}",
        "aws_secret_access_key: wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        "AKIAIOSFODNN7EXAMPLE",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ray start --dashboard-host=0.0.0.0",
        "dashboard-host: '::'",
        "serviceType: LoadBalancer",
    ],
)
def test_a_secret_or_a_public_address_would_be_seen(line):
    assert text_faults(line)


@pytest.mark.parametrize("name", RAY)
def test_ray(name):
    assert ray_faults(read(f"ray/{name}.yaml")) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("aws", "idle_timeout_minutes:", "idle_timeout:", "idle_timeout"),
        ("aws", "head_node_type: head", "head_node_type: heads", "head_node_type"),
        ("aws", "MetadataOptions:", "MetadataOption:", "metadata service"),
        ("aws", "ToPort: 22", "ToPort: 65535", "SSH alone"),
        ("gcp", "max_workers: 4\n", "max_workers: four\n", "four"),
        ("gcp", "--include-dashboard=false", "--dashboard-host=0.0.0.0", "everyone"),
        ("gcp", "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "no token"),
        ("on_premises", "worker_ips: [", "worker_ips: 7 #", "Ray: "),
        ("on_premises", "--include-dashboard=false", "", "a dashboard"),
        ("on_premises", ". ~/mips/cluster/ray.env;", "", "ray.env"),
        ("on_premises", "  - ~/mips/cluster/setup.sh\n", "", "setup.sh"),
        ("on_premises", "export RAY_enable_autoscaler_v2=0; ", "", "a worker out"),
        ("on_premises", "env -u RAY_ADDRESS", "RAY_AUTH_TOKEN=correct-horse", "token"),
    ],
)
def test_ray_broken(name, old, new, fault):
    assert fault in "; ".join(ray_faults(broken(read(f"ray/{name}.yaml"), old, new)))


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes(name):
    assert kubernetes_faults(read(f"kubernetes/{name}.yaml")) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("raycluster", "dashboard-host: 127.0.0.1", "dashboard-host: 0.0.0.0", "everyone"),
        ("raycluster", 'include-dashboard: "false"', 'include-dashboard: "true"', "a dashboard"),
        ("raycluster", "mips-dist:0.1.0", "mips-dist:latest", "latest"),
        ("raycluster", "mode: token", "mode: disabled", "no token"),
        ("raycluster", "runAsNonRoot: true", "runAsNonRoot: false", "root"),
        ("raycluster", "rayVersion: 2.60.0", "rayVersion: 2.53.0", "rayVersion"),
        ("raycluster", 'grpc_keepalive_time_ms, value: "5000"', 'x, value: "5000"', "ray.env"),
        ("rayjob", "serviceType: ClusterIP", "serviceType: LoadBalancer", "outside"),
        ("rayjob", "drop: [ALL]", "drop: []", "rights of root"),
        (
            "rayjob",
            '{name: RAY_USAGE_STATS_ENABLED, value: "0"}',
            "{name: RAY_AUTH_TOKEN, value: correct-horse-battery}",
            "a value for a token",
        ),
        ("rayjob", "app.kubernetes.io/name: mips-dist", "app: mips-dist", "network.yaml"),
        (
            "network",
            "podSelector:\n            matchLabels:",
            "ipBlock:\n            cidr:",
            "more than",
        ),
        ("network", "policyTypes: [Ingress]", "policyTypes: [Egress]", "does not cover"),
    ],
)
def test_kubernetes_broken(name, old, new, fault):
    assert fault in "; ".join(kubernetes_faults(broken(read(f"kubernetes/{name}.yaml"), old, new)))


@pytest.fixture(scope="module")
def schemas(data_dir: Path) -> dict[str, object]:
    """The schemas of KubeRay, and from inside them those of two kinds of Kubernetes itself."""
    found = {}
    for name in ("rayclusters", "rayjobs"):
        with gzip.open(data_dir / f"kuberay/ray.io_{name}.yaml.gz") as file:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            crd = yaml.load(file, Loader=loader)  # safe as safe_load, and ten times as fast
        served = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
        found[crd["spec"]["names"]["kind"]] = served["schema"]["openAPIV3Schema"]
    spec = found["RayCluster"]["properties"]["spec"]["properties"]
    pod = spec["headGroupSpec"]["properties"]["template"]["properties"]["spec"]["properties"]
    ephemeral = pod["volumes"]["items"]["properties"]["ephemeral"]["properties"]
    claim = ephemeral["volumeClaimTemplate"]["properties"]["spec"]
    found["PersistentVolumeClaim"] = {"type": "object", "properties": {"spec": claim}}
    rules = spec["networkPolicy"]["properties"]["head"]["properties"]["ingressRules"]
    selector = rules["items"]["properties"]["from"]["items"]["properties"]["podSelector"]
    kinds = {"type": "array", "items": {"enum": ["Ingress", "Egress"]}}
    policy = {"podSelector": selector, "policyTypes": kinds, "ingress": rules}
    inner = {"type": "object", "properties": policy}
    found["NetworkPolicy"] = {"type": "object", "properties": {"spec": inner}}
    for kind in ("PersistentVolumeClaim", "NetworkPolicy"):
        found[kind]["properties"] |= {key: {} for key in ("apiVersion", "kind", "metadata")}
    return found


@pytest.mark.needs_data
@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_has_the_schema_of_its_kind(name, schemas):
    assert schema_faults(read(f"kubernetes/{name}.yaml"), schemas) == []


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("raycluster", "rayStartParams", "rayStartParms", "'rayStartParms' was unexpected"),
        ("raycluster", "replicas: 4\n      minR", "replicas: four\n      minR", "replicas: 'four'"),
        ("raycluster", "drop: [ALL]", "drop: ALL", "drop: 'ALL'"),
        ("rayjob", "backoffLimit: 3", "backofLimit: 3", "'backofLimit' was unexpected"),
        ("rayjob", "mountPath:", "mountpath:", "'mountpath'"),
        ("network", "port: 8265", "port: [8265]", "port: [8265]"),
        ("storage", "accessModes: [", "accessMode: [", "'accessMode' was unexpected"),
    ],
)
def test_kubernetes_with_another_schema(name, old, new, fault, schemas):
    text = broken(read(f"kubernetes/{name}.yaml"), old, new)
    assert fault in "; ".join(schema_faults(text, schemas))


@pytest.mark.parametrize("name", SLURM)
def test_slurm(name):
    assert slurm_faults(read(f"slurm/{name}")) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("pretrain.sbatch", "#SBATCH --requeue\n", "", "no --requeue"),
        ("pretrain.sbatch", "B:USR1@300", "USR1@300", "no USR1"),
        ("pretrain.sbatch", "--open-mode=append", "--open-mode=truncate", "is lost"),
        ("pretrain.sbatch", "timeout 300 srun", "srun", "waits for ever"),
        ("pretrain.sbatch", "srun cluster/setup.sh --check", "srun true", "setup.sh"),
        ("ray.sbatch", "--include-dashboard=false", "--dashboard-host=0.0.0.0", "everyone"),
        ("ray.sbatch", "umask 077", "true", "umask"),
        ("ray.sbatch", ". cluster/ray.env", "", "ray.env"),
        ("ray.sbatch", "export RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN=correct-horse", "token"),
    ],
)
def test_slurm_broken(name, old, new, fault):
    assert fault in "; ".join(slurm_faults(broken(read(f"slurm/{name}"), old, new)))


def linter(name: str) -> str:
    """The path of a linter beside this Python or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here; pip install {name}-{'py' if name == 'shellcheck' else 'bin'}")
    return found


def lint(words: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_shellcheck(tmp_path):
    command = [linter("shellcheck"), "--external-sources"]
    scripts = [*CLUSTER.rglob("*.sbatch"), *CLUSTER.rglob("*.sh"), CLUSTER / "ray.env"]
    assert len(scripts) == 5
    done = lint([*command, *map(str, scripts)])
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "pretrain.sbatch"
    bad.write_text(broken(read("slurm/pretrain.sbatch"), '"$@" &', "$* &"))
    assert "SC2048" in lint([*command, str(bad)]).stdout


def test_hadolint(tmp_path):
    command = linter("hadolint")
    done = lint([command, str(CLUSTER / "image/Dockerfile")])
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text(re.sub(r"FROM .*", "FROM python:latest", read("image/Dockerfile")))
    assert "DL3007" in lint([command, str(bad)]).stdout


def test_image():
    assert image_faults(read("image/Dockerfile")) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.11.14-slim-bookworm", "python:latest", "floats"),
        ("USER 1000:1000\n", "", "root"),
        ("gcc=4:12.2.0-3", "gcc", "gcc: no version"),
        ("RUN cluster/setup.sh", "RUN pip install ray", "setup.sh"),
        ("ENV PIP_NO_CACHE_DIR=1", "ARG RAY_AUTH_TOKEN", "stays in the image"),
        ("HEALTHCHECK NONE\n", "", "health"),
    ],
)
def test_image_broken(old, new, fault):
    assert fault in "; ".join(image_faults(broken(read("image/Dockerfile"), old, new)))


def test_the_image_gets_what_other_nodes_get():
    lines = read("image/Dockerfile.dockerignore").splitlines()
    assert lines[1] == "*"  # all but what is named
    assert {line[1:] for line in lines if line.startswith("!")} == CODE
    assert all((ROOT / name).exists() for name in CODE)


def test_hostfile_of_deepspeed(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(CLUSTER / "deepspeed/hostfile")) == {"node1": 8, "node2": 8}
    for old, new in (("node2", "node1"), ("slots=8", "slots = 8")):
        bad = tmp_path / "hostfile"
        bad.write_text(broken(read("deepspeed/hostfile"), old, new))
        with pytest.raises(ValueError, match="unable to proceed"):
            fetch_hostfile(str(bad))
    # DeepSpeed splits every line of it at "=", comments too.
    lines = read("deepspeed/deepspeed_env").splitlines()
    assert all(re.fullmatch(r"[A-Z_]+=[\w.]+", line) for line in lines)


def test_ray_environment():
    found = ray_environment()
    assert found["RAY_AUTH_MODE"] == "token"
    # Without these four a task sent over a link that fell silent is never given up.
    for side in ("grpc", "grpc_client"):
        for what in ("time", "timeout"):
            assert int(found[f"RAY_{side}_keepalive_{what}_ms"]) <= 10_000
    # Without it a name of /etc/hosts is looked for in the DNS, for ever where there is none.
    assert found["GRPC_DNS_RESOLVER"] == "native"
    done = lint(["bash", "-c", "set -eu; . cluster/ray.env; env"])
    assert {f"{k}={v}" for k, v in found.items()} <= set(done.stdout.splitlines())


def test_versions_are_above_the_known_holes():
    def parts(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(".")[:2])

    assert parts(lock()["ray"]) >= (2, 54)
    assert parts(lock()["torch"]) >= (2, 10)


def test_set_up_names_every_version_that_is_not_the_locked_one(tmp_path):
    (tmp_path / "cluster").mkdir()
    script = shutil.copy(CLUSTER / "setup.sh", tmp_path / "cluster")
    lines = [f"numpy=={__import__('numpy').__version__}", "# torch==0", "yaml-of-nobody==1.0"]
    (tmp_path / "requirements.lock").write_text("\n".join(lines) + "\n")

    done = lint([script, "--check"])
    assert done.returncode == 1
    assert "no environment in" in done.stderr

    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = lint([script, "--check"])
    assert done.returncode == 1
    assert "yaml-of-nobody none, requirements.lock has 1.0" in done.stdout
    assert "numpy" not in done.stdout

    (tmp_path / "requirements.lock").write_text(lines[0])
    done = lint([script, "--check"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 locked versions" in done.stdout
    assert lint([script, "--chekc"]).returncode == 2
