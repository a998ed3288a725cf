"""Somebody at a terminal with `expertmesh k8s`, a config and a cluster."""

import pytest

from orchestrator.cli.main import main
from tests.k8s.kuberay import CLUSTERS

MESH = """
mesh: {name: chat}
model: {path: /models/big}
pools:
  cpu: {vendor: cpu, shards: 4, max_shards: 8}
kubernetes: {monitoring_namespace: null}
"""
KEY = (CLUSTERS, "expertmesh", "chat")


class Desk:
    """Somebody at a terminal, with a config and a cluster."""

    def __init__(self, server, operator, folder, capsys):
        self.server, self.operator, self.folder, self._capsys = server, operator, folder, capsys
        self.kubeconfig = server.kubeconfig(folder)
        self.write(MESH)

    def write(self, text):
        self.config = self.folder / "mesh.yaml"
        self.config.write_text(text)

    def run(self, verb, *arguments):
        """(exit code, output, error)"""
        given = [str(self.config), *arguments, "--kubeconfig", str(self.kubeconfig)]
        with pytest.raises(SystemExit) as ended:
            main(["k8s", verb, *given])
        out, err = self._capsys.readouterr()
        return ended.value.code or 0, out, err

    def refused(self, verb, *arguments):
        """The one line on stderr."""
        code, _, err = self.run(verb, *arguments)
        assert code == 2
        assert err.count("\n") == 1, err
        return err

    @property
    def store(self):
        return self.server.store

    def group(self):
        groups = self.store.objects[KEY]["spec"]["workerGroupSpecs"]
        return next(g for g in groups if g["groupName"] == "cpu")
