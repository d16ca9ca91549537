"""Look up the locked versions in PyPI's database of known vulnerabilities, by pip-audit.

    .venv/bin/python scripts/audit.py

Exit code 1 where a locked version is vulnerable. Where the database cannot be reached it says so in
one line and ends with 0: a machine without that network is no reason to fail. A mirror that answers
without knowing any of the packages is not taken for a good answer, as pip-audit itself does.
pip-audit lies in a folder of its own, .venv/audit: what it needs must not disturb the lock file.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOL = "pip-audit==2.10.1"
SECONDS = 300


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the exit code and the lines for a report of pip-audit."""
    packages = report["dependencies"]
    skipped = [package for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']} "
        f"({', '.join(found.get('aliases', [])) or 'no other name'}), "
        f"fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    if len(skipped) == len(packages):
        return 0, ["audit: not done, the database knows none of the packages (a mirror?)"]
    if skipped:
        lines.append(f"audit: {len(skipped)} of {len(packages)} versions are not known there")
    known = len(packages) - len(skipped)
    vulnerable = sum(bool(package.get("vulns")) for package in packages)
    lines.append(f"audit: {vulnerable} of {known} locked versions are known to be vulnerable")
    return int(vulnerable > 0), lines


def main() -> int:
    """Run pip-audit on requirements.lock."""
    folder = ROOT / ".venv" / "audit"
    python = folder / "bin" / "python"
    try:
        if not (folder / "bin" / "pip-audit").exists():
            venv.create(folder, with_pip=True, clear=True)
            install = [python, "-m", "pip", "install", "--quiet", TOOL]
            subprocess.run(install, check=True, capture_output=True, timeout=SECONDS)
        command = [python, "-m", "pip_audit", "--requirement", ROOT / "requirements.lock"]
        command += ["--no-deps", "--disable-pip", "--vulnerability-service", "pypi"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        report = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())[:120]
        print(f"audit: not done, pip-audit or its database is out of reach ({reason})")
        return 0
    code, lines = verdict(report)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
