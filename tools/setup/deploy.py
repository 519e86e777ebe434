#!/usr/bin/python3
"""Reads docs/deploy: does it parse, refer to what exists, and agree with the program that it deploys? Part of `make check`.

Prints each mistake as FILE: what is wrong, and exits with 1 if there is one.
"""

import configparser
import json
import pathlib
import re
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs/deploy"
CSI = ROOT / "tools/nvmf-csi/src"
mistakes = []


def mistake(path, what):
    mistakes.append(f"{path.relative_to(ROOT)}: {what}")


def documents(path):
    try:
        return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except yaml.YAMLError as error:
        mistake(path, error)
        return []


def used_by(kustomization):
    """The files that a kustomization names, through the folders that it names."""
    found = set()
    for document in documents(kustomization):
        patches = [patch["path"] for patch in document.get("patches", []) if "path" in patch]
        for name in document.get("resources", []) + document.get("components", []) + patches:
            path = kustomization.parent / name
            if path.is_dir():
                path /= "kustomization.yaml"
                found |= used_by(path) if path.exists() else set()
            if not path.exists():
                mistake(kustomization, f"{name} does not exist")
            found.add(path)
    return found


def check_workload(path, document, flags):
    template = document["spec"]["template"]
    pod = template["spec"]
    selector = document["spec"].get("selector")  # a patch has none
    labels = template.get("metadata", {}).get("labels", {})
    if selector and not selector["matchLabels"].items() <= labels.items():
        mistake(path, "the selector is not among the labels of its pods")
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        name, image = container["name"], container["image"]
        if image != "nvmf-csi" and not re.search(r":v?\d+(\.\d+)+$", image):
            mistake(path, f"{name}: image {image} names no version")
        for mount in container.get("volumeMounts", []):
            if selector and mount["name"] not in volumes:
                mistake(path, f"{name}: there is no volume {mount['name']}")
        for argument in container.get("args", []) if image == "nvmf-csi" else []:
            flag = argument.split("=")[0]
            if flag not in flags:
                mistake(path, f"{name}: nvmf-csi has no {flag}")


def driver():
    """The driver's name and the flags of its command line."""
    name = re.search(r'DRIVER_NAME: &str = "(.*)"', (CSI / "identity.rs").read_text())
    fields = re.search(r"struct Cli \{(.*?)\n\}", (CSI / "main.rs").read_text(), re.S)
    if not name or not fields:
        sys.exit("deploy.py: DRIVER_NAME or struct Cli is not where it was in tools/nvmf-csi: look, and correct this script")
    flags = {"--" + field.replace("_", "-") for field in re.findall(r"^    (\w+):", fields[1], re.M)}
    return name[1], flags


def check_objects(paths):
    name, flags = driver()
    objects, wanted = set(), []
    for path in paths:
        for document in documents(path):
            kind = document.get("kind")
            if not kind or "apiVersion" not in document or "name" not in document.get("metadata", {}):
                mistake(path, "an object without apiVersion, kind or name")
                continue
            namespace = document["metadata"].get("namespace")
            objects.add((kind, namespace, document["metadata"]["name"]))
            if kind in ("StatefulSet", "DaemonSet"):
                check_workload(path, document, flags)
                account = document["spec"]["template"]["spec"].get("serviceAccountName")
                wanted += [(path, ("ServiceAccount", namespace, account))] if account else []
            if kind == "ClusterRoleBinding":
                wanted.append((path, ("ClusterRole", None, document["roleRef"]["name"])))
                wanted += [(path, (s["kind"], s["namespace"], s["name"])) for s in document["subjects"]]
            if kind.endswith("Class"):
                says = document.get("provisioner") or document.get("driver")
            else:
                says = document["metadata"]["name"] if kind == "CSIDriver" else name
            if says != name:
                mistake(path, f"the driver is called {name}, not {says}")
            wanted += [(path, ("Namespace", None, namespace))] if namespace else []
    for path, reference in wanted:
        if reference not in objects:
            mistake(path, f"there is no {reference[0]} {reference[2]}")


def check_seccomp(path):
    rules = json.loads(path.read_text())["syscalls"]
    allowed = [name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule for name in rule["names"]]
    for name in ("io_uring_setup", "io_uring_enter", "io_uring_register"):
        if name not in allowed:
            mistake(path, f"{name} is not allowed")
    for name in ("mount", "bpf", "ptrace", "unshare", "setns", "init_module", "finit_module", "kexec_load"):
        if name in allowed:
            mistake(path, f"{name} is allowed")
    for name in {name for name in allowed if allowed.count(name) > 1}:
        mistake(path, f"{name} is there twice")


def check_unit(path):
    unit = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=")
    unit.optionxform = str
    unit.read_string(path.read_text())
    program = pathlib.Path(unit["Service"]["ExecStart"].split()[0]).name
    if not any((ROOT / folder / program / "src/main.rs").exists() for folder in (".", "tools")):
        mistake(path, f"this project has no program {program}")


manifests = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
kustomizations = [path for path in manifests if path.name == "kustomization.yaml"]
named = set().union(*map(used_by, kustomizations))
for path in manifests:
    if path not in named and path not in kustomizations:
        mistake(path, "no kustomization names it")
check_objects([path for path in manifests if path not in kustomizations])
profiles, units = sorted((DEPLOY / "seccomp").glob("*.json")), sorted((DEPLOY / "systemd").glob("*.service"))
for path in profiles:
    check_seccomp(path)
for path in units:
    check_unit(path)
print(*mistakes, sep="\n", end="\n" if mistakes else "")
print(f"{len(manifests)} manifests, {len(profiles)} seccomp profiles, {len(units)} units: {len(mistakes)} mistakes")
sys.exit(bool(mistakes))
