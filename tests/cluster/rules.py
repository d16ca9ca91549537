"""What must hold for the files of cluster/; each function lists what does not."""

import copy
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
# What cluster/setup.sh needs of the checkout.
CODE = {"mips_dist", "preprocess", "configs", "cluster", "scripts"}
CODE |= {"pyproject.toml", "requirements.lock", "README.md", "LICENSE"}
LABEL = {"app.kubernetes.io/name": "mips-dist"}

SECRETS = {
    "a private key": r"-----BEGIN",
    "a key of AWS": r"\bA[KS]IA[0-9A-Z]{16}\b",
    "a long hexadecimal number": r"\b(?<!sha256:)[0-9a-f]{32,}\b",
    "a value for a token, password or key": r"(?i)(token|passw(or)?d|secret|access_key)"
    r"(\w*)[\"']?\s*[:=,]\s*(value:\s*)?[\"']?(?![\w./~-]*[/~])[A-Za-z0-9+_-]{12,}",
}
PUBLIC = {
    "an address that everyone reaches": r"\b0\.0\.0\.0\b|(?<![\w:])::(?![\w:])",
    "a service for the outside": r"\b(LoadBalancer|NodePort|hostNetwork|hostPort|Ingress\b(?!\]))",
}


def text_faults(text: str) -> list[str]:
    """Secrets, and addresses or services that the world reaches."""
    return [
        f"line {number}: {name}"
        for number, line in enumerate(text.splitlines(), 1)
        for name, pattern in (SECRETS | PUBLIC).items()
        if re.search(pattern, line) and not line.lstrip().startswith("#")
    ]


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def ray_environment() -> dict[str, str]:
    """What cluster/ray.env exports."""
    text = (CLUSTER / "ray.env").read_text(encoding="utf-8")
    return dict(re.findall(r"^export (\w+)=(\S+)$", text, re.MULTILINE))


# ---- Ray


def ray_faults(text: str) -> list[str]:
    """Ask Ray itself first, as `ray up` does."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    faults = text_faults(text)
    config = yaml.safe_load(text)
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except Exception as error:  # each check of Ray's has its own class
        return [*faults, f"Ray: {str(error).splitlines()[0]}"]
    mounts = {k: v for k, v in prepared["file_mounts"].items() if k != "~/.ray/auth_token"}
    if mounts != {f"~/mips/{name}": name for name in CODE}:
        faults.append("file_mounts: not what cluster/setup.sh needs")
    if prepared["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        faults.append("file_mounts: no token")
    if "~/mips/cluster/setup.sh" not in prepared["setup_commands"]:
        faults.append("setup_commands: no cluster/setup.sh")
    for kind in ("head", "worker"):
        start = prepared[f"{kind}_start_ray_commands"][-1]
        faults += [
            f"{kind}: no {word}"
            for word in (". ~/mips/cluster/ray.env;", "env -u RAY_ADDRESS ray start")
            if word not in start
        ]
    if "--include-dashboard=false" not in prepared["head_start_ray_commands"][-1]:
        faults.append("head: a dashboard")
    is_local = prepared["provider"]["type"] == "local"
    if is_local and "RAY_enable_autoscaler_v2=0;" not in prepared["head_start_ray_commands"][-1]:
        faults.append("head: an autoscaler that leaves a worker out")
    group = prepared["provider"].get("security_group")
    if prepared["provider"]["type"] == "aws":
        rules = group["IpPermissions"] if group else []
        if [rule["ToPort"] for rule in rules] != [22]:
            faults.append("security_group: not SSH alone")
        for kind in prepared["available_node_types"].values():
            if kind["node_config"].get("MetadataOptions") != {"HttpTokens": "required"}:
                faults.append("node_config: the metadata service asks for no token")
    return faults


# ---- Kubernetes


def strict(schema: Any) -> Any:
    """Return a schema of Kubernetes that allows no unknown key."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(part) for key, part in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if (
        isinstance(schema.get("properties"), dict)
        and schema.get("type") == "object"
        and not is_open
    ):
        made.setdefault("additionalProperties", False)
    return made


def schema_faults(text: str, schemas: dict[str, Any]) -> list[str]:
    """Compare with the schema of its kind, no unknown key allowed."""
    manifest = yaml.safe_load(text)
    errors = jsonschema.Draft7Validator(strict(schemas[manifest["kind"]])).iter_errors(manifest)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in errors]


def kubernetes_faults(text: str) -> list[str]:
    """Security, versions, and the settings of Ray."""
    faults = text_faults(text)
    manifest = yaml.safe_load(text)
    spec = manifest["spec"]
    if manifest["kind"] == "PersistentVolumeClaim":
        return faults
    if manifest["kind"] == "NetworkPolicy":
        if spec["podSelector"] != {"matchLabels": LABEL} or spec["policyTypes"] != ["Ingress"]:
            faults.append("it does not cover the incoming connections of our pods")
        sources = [source for rule in spec["ingress"] for source in rule.get("from") or [{}]]
        if any(not s.get("podSelector", {}).get("matchLabels") for s in sources):
            faults.append("a rule lets in more than named pods")
        return faults
    is_job = manifest["kind"] == "RayJob"
    cluster = spec["rayClusterSpec"] if is_job else spec
    if cluster["rayVersion"] != lock()["ray"]:
        faults.append("rayVersion: not the locked one")
    if cluster.get("authOptions") != {"mode": "token"}:
        faults.append("authOptions: no token")
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    if head.get("serviceType") != "ClusterIP":
        faults.append("serviceType: reached from outside")
    if not is_job and head["rayStartParams"].get("include-dashboard") != "false":
        faults.append("rayStartParams: a dashboard")
    for group in (head, *workers):
        faults += pod_faults(group["template"])
    return faults


def pod_faults(template: dict[str, Any]) -> list[str]:
    faults = []
    if template["metadata"]["labels"] != LABEL:
        faults.append("labels: network.yaml does not cover the pod")
    spec = template["spec"]
    if spec.get("automountServiceAccountToken") is not False:
        faults.append("a service account")
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) == 0:
        faults.append("runs as root")
    expected = {k: v for k, v in ray_environment().items() if k != "RAY_AUTH_MODE"}
    for container in spec["containers"]:
        if not container["image"].endswith(f"/mips-dist:{version('mips-dist')}"):
            faults.append(f"image: not this version of the project: {container['image']}")
        rights = container.get("securityContext", {})
        if rights.get("allowPrivilegeEscalation") is not False or rights.get("capabilities") != {
            "drop": ["ALL"]
        }:
            faults.append("rights of root")
        if container["resources"]["limits"] != container["resources"]["requests"]:
            faults.append("resources: it may be pushed out")
        if not {"livenessProbe", "readinessProbe"} <= container.keys():
            faults.append("no probes")
        if {entry["name"]: entry["value"] for entry in container["env"]} != expected:
            faults.append("env: not that of cluster/ray.env")
    return faults


# ---- Slurm


def slurm_faults(text: str) -> list[str]:
    faults = text_faults(text)
    given = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE)
    options = dict(given)
    faults += [
        f"no --{name}" for name in ("requeue", "signal", "open-mode", "time") if name not in options
    ]
    notice = re.fullmatch(r"B:USR1@(\d+)", options.get("signal", ""))
    if notice is None or int(notice[1]) < 120:  # Slurm is up to 60 s early or late
        faults.append("--signal: no USR1 to the script in good time")
    if options.get("open-mode") != "append":
        faults.append("--open-mode: the log of an earlier start is lost")
    commands = re.sub(r"\\\n\s*", "", text).splitlines()
    for command in commands:
        if re.search(r"(^|\s)srun\s", command) and not command.lstrip().startswith(
            ("#", "timeout ")
        ):
            faults.append(f"waits for ever: {command[:40]}")
    for line in (". cluster/slurm/job.sh", "srun cluster/setup.sh --check", 'leave "$code"'):
        if not any(command.endswith(line) for command in commands):
            faults.append(f"no {line}")
    if "ray start" in text:
        faults += [
            f"no {word}"
            for word in (". cluster/ray.env", "--include-dashboard=false", "umask 077")
            if word not in text
        ]
    return faults


# ---- image


def image_faults(text: str) -> list[str]:
    faults = text_faults(text)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    base = next(line.split()[1] for line in lines if line.startswith("FROM "))
    if not re.search(r":\d+\.\d+\.\d+-|@sha256:[0-9a-f]{64}$", base):
        faults.append(f"the base floats: {base}")
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    if not users or users[-1].split(":")[0] in ("0", "root"):
        faults.append("runs as root")
    if "RUN cluster/setup.sh" not in lines:
        faults.append("no cluster/setup.sh")
    for line in lines:
        if re.match(r"(ARG|ENV) .*(TOKEN|SECRET|PASSWORD|_KEY)", line):
            faults.append(f"a secret stays in the image: {line}")
        for packages in re.findall(r"apt-get install (.*?)(?:&&|$)", line):
            names = [word for word in packages.split() if not word.startswith("-")]
            faults += [f"{name}: no version" for name in names if "=" not in name]
    if not any(line.startswith("HEALTHCHECK ") for line in lines):
        faults.append("nothing is said about its health")
    return faults
