"""What all parts of one mesh's controller know: config, checkpoint, secret, where to meet."""

from dataclasses import dataclass, field

from actors.experts.spec import ExpertSpec
from actors.wire.address import Address
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.core_shares import CoreShares, core_shares
from orchestrator.run_dir import RunDir
from orchestrator.upgrade.effects import setups_of


@dataclass(frozen=True, slots=True)
class Mesh:
    """directory: where dispatchers find the controller. fingerprint: of the checkpoint."""

    config: MeshConfig
    run_dir: RunDir
    secret: bytes = field(repr=False)
    spec: ExpertSpec
    fingerprint: str
    directory: Address

    @property
    def private(self) -> bool:
        """The mesh has a Ray session, and so a machine, of its own."""
        return is_private(self.config)

    @property
    def shares(self) -> CoreShares:
        return core_shares(self.config)

    @property
    def setups(self) -> dict[str, str]:
        """By pool, see `actors.origin`."""
        return setups_of(self.config)

    def pool(self, name: str) -> PoolConfig:
        return self.config.pools[name]

    @property
    def tcp_listen(self) -> str:
        # A private session is one machine: nothing needs to be reachable from outside.
        return "tcp:127.0.0.1:0" if self.private else node_listen(self.config)


def is_private(config: MeshConfig) -> bool:
    return config.cluster.ray_address is None


def node_listen(config: MeshConfig) -> str:
    """Where a process of a shared cluster listens for other nodes."""
    return f"tcp:node:{config.cluster.ports or 0}"


def tcp_security(config: MeshConfig) -> TcpSecurity:
    """Of connections between nodes; a private session has none."""
    router = config.router
    if is_private(config):
        return HANDSHAKE_ONLY
    return TcpSecurity(router.between_nodes_security, router.tls_certificate, router.tls_key)
