"""Prints the options of `docker run` for a service of a compose file, one a line.

    run_options.py COMPOSE.yaml SERVICE

For prove.sh only. A key that it does not know ends it: nothing of the file is left out in silence.
"""
import os
import re
import sys

import yaml

IGNORED = {"build", "depends_on"}  # prove.sh does it


def expand(text):
    """`${NAME:-default}`, of the environment."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1]) or m[2], text)


def health(check):
    assert check["test"][0] == "CMD", check
    yield "--health-cmd=" + " ".join(check["test"][1:])
    # Looked at more often than in earnest.
    yield "--health-interval=1s"
    yield "--health-timeout=" + check["timeout"]
    yield "--health-start-period=" + check["start_period"]


def volume(project, text):
    source, target = expand(text).split(":", 1)
    return f"--volume={source if source.startswith('/') else f'{project}_{source}'}:{target}"


def options(project, name, service):
    yield f"--name={name}"
    for key, value in service.items():
        if key == "network_mode":
            yield f"--network={value}"
        elif key in ("cap_add", "cap_drop", "security_opt", "group_add", "tmpfs"):
            yield from (f"--{key.replace('_', '-')}={item}" for item in value)
        elif key == "devices":
            yield from (f"--device={item}" for item in value)
        elif key == "volumes":
            yield from (volume(project, item) for item in value)
        elif key == "read_only":
            assert value is True
            yield "--read-only"
        elif key in ("user", "restart"):
            yield f"--{key}={value}"
        elif key == "stop_grace_period":
            yield f"--stop-timeout={value.removesuffix('s')}"
        elif key == "healthcheck":
            yield from health(value)
        elif key not in IGNORED | {"image", "command"}:
            sys.exit(f"run_options.py: `{key}` is not known here")
    yield service["image"]
    yield from service["command"]


with open(sys.argv[1], encoding="utf-8") as file:
    compose = yaml.safe_load(file)
print("\n".join(options(compose["name"], sys.argv[2], compose["services"][sys.argv[2]])))
