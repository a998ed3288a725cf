"""A real API server for the tests: etcd, kube-apiserver and kube-controller-manager of a folder.

Everything is on loopback, with RBAC, certificates of its own and data in a temporary folder. The
controller manager brings the garbage collector, which foreground deletion needs. There are no nodes
and no scheduler, so pods are accepted and never run.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from kubernetes import client
from kubernetes.config import new_client_from_config

from tests.orchestrator.gateway.ray_fakes import free_port

ADMIN_TOKEN = "admin-of-a-test"
START_TIMEOUT_S = 90.0
CONTROLLERS = (
    "garbagecollector", "namespace", "serviceaccount", "serviceaccount-token", "disruption",
    "pvc-protection",
)  # fmt: skip
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """kubeconfig: of somebody who may do everything."""

    url: str
    etcd_url: str
    kubeconfig: Path


@contextmanager
def control_plane(binaries: Path, folder: Path) -> Iterator[ControlPlane]:
    """A cluster's control plane until the block ends; logs and data are in `folder`."""
    url = f"https://127.0.0.1:{free_port()}"
    etcd_url = f"http://127.0.0.1:{free_port()}"
    keys = _service_account_keys(folder)
    admin = kubeconfig(folder / "admin.yaml", url, folder / "apiserver.crt", ADMIN_TOKEN)
    with ExitStack() as stack:
        _start(stack, binaries / "etcd", folder, _etcd(etcd_url, folder))
        _wait(f"{etcd_url}/health", folder / "etcd.log")
        server = _api_server(url, etcd_url, keys, folder)
        _start(stack, binaries / "kube-apiserver", folder, server)
        _wait(f"{url}/readyz", folder / "kube-apiserver.log", ADMIN_TOKEN)
        manager = binaries / "kube-controller-manager"
        _start(stack, manager, folder, _controller_manager(manager, admin, keys[0], folder))
        yield ControlPlane(url, etcd_url, admin)


def kubeconfig(file: Path, server: str, authority: Path, token: str) -> Path:
    """A file for `--kubeconfig`, written."""
    cluster = {"server": server, "certificate-authority": str(authority)}
    said = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    file.write_text(yaml.safe_dump(said))
    return file


def kubeconfig_like(other: Path, file: Path, token: str) -> Path:
    """A kubeconfig for the same server, with another token."""
    said = yaml.safe_load(other.read_text())
    users = [{"name": user["name"], "user": {"token": token}} for user in said["users"]]
    file.write_text(yaml.safe_dump(said | {"users": users}))
    return file


def _etcd(url: str, folder: Path) -> list[str]:
    peer = f"http://127.0.0.1:{free_port()}"
    return [
        *("--data-dir", str(folder / "etcd")),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"default={peer}"),
    ]


def _api_server(url: str, etcd_url: str, keys: tuple[Path, Path], folder: Path) -> list[str]:
    tokens = folder / "tokens.csv"
    tokens.write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
    return [
        f"--etcd-servers={etcd_url}",
        f"--secure-port={url.rpartition(':')[2]}",
        *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
        "--endpoint-reconciler-type=none",
        f"--cert-dir={folder}",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={keys[0]}",
        f"--service-account-key-file={keys[1]}",
        # A watch of a test's ends with the server; it need not wait long for others.
        "--min-request-timeout=60",
    ]


def _controller_manager(program: Path, admin: Path, private: Path, folder: Path) -> list[str]:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    # Until 1.23 it also listens on every address, without asking who is there.
    old = int(version.stdout.split(".")[1]) < 24
    return [
        *(["--port=0"] if old else []),
        f"--kubeconfig={admin}",
        f"--service-account-private-key-file={private}",
        f"--cert-dir={folder / 'controller-manager'}",
        *("--bind-address=127.0.0.1", f"--secure-port={free_port()}"),
        "--leader-elect=false",
        f"--controllers={','.join(CONTROLLERS)}",
    ]


def _service_account_keys(folder: Path) -> tuple[Path, Path]:
    """Files of the private and the public key that tokens of service accounts are signed with."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = folder / "accounts.key", folder / "accounts.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def _start(stack: ExitStack, program: Path, folder: Path, arguments: list[str]) -> None:
    log = stack.enter_context((folder / f"{program.name}.log").open("wb"))
    process = subprocess.Popen([str(program), *arguments], stdout=log, stderr=log, cwd=folder)
    stack.callback(_stop, process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(url: str, log: Path, token: str = "") -> None:
    """Until it answers 200; its certificate is made while it starts, so none is checked here."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    while time.monotonic() < deadline_s:
        try:
            if httpx.get(url, headers=headers, verify=False, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{url} does not answer: {log.read_text(errors='replace')[-2000:]}")


def install_crds(kubeconfig: Path, folder: Path) -> None:
    """Every CustomResourceDefinition of a folder's files, served when this returns."""
    api = client.ApiextensionsV1Api(new_client_from_config(str(kubeconfig)))
    old = int(client.VersionApi(api.api_client).get_code().minor.rstrip("+")) < 21
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    names = []
    for file in sorted(folder.glob("*.yaml")):
        text = file.read_text()
        if old:  # takes an empty text for none, and refuses it as a default
            text = text.replace('default: ""\n', "default: none\n")
        crd = yaml.load(text, Loader=loader)
        api.create_custom_resource_definition(crd)
        names.append(crd["metadata"]["name"])
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not all(_established(api, name) for name in names):
        assert time.monotonic() < deadline_s, f"{names} are not all served"
        time.sleep(0.2)


def _established(api: client.ApiextensionsV1Api, name: str) -> bool:
    conditions = api.read_custom_resource_definition(name).status.conditions or []
    return any(c.type == "Established" and c.status == "True" for c in conditions)
