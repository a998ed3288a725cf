"""Random faults, drawn from the simulation's seed, and their end."""

from orchestrator.control.verbs import VERBS
from tests.sim.mesh import MemoryJournal, SimMesh, keys_of
from tests.sim.network import CONTROLLER, FAIR, FOUL
from tests.sim.process import Process


class Faults:
    """Strikes every few seconds until `stop`; then everything heals."""

    def __init__(self, mesh: SimMesh, pause_s: float = 4.0) -> None:
        self._mesh = mesh
        self._pause_s = pause_s
        self._stopped = False
        self._kinds = [
            self._kill,
            self._kill,
            self._hang,
            self._slow,
            self._cut_controller,
            self._cut_dispatcher,
            self._stick,
            self._kill_controller,
            self._foul,
            self._shift_load,
            self._verb,
            self._node,
            self._pull_cable,
            self._fill_disk,
        ]

    def begin(self) -> None:
        self._mesh.clock.after(self._pause_s * self._mesh.random.random(), self._strike)

    def stop(self) -> None:
        """No new faults; what hangs goes on, what is cut off is joined again."""
        mesh = self._mesh
        self._stopped = True
        mesh.crash = 0.0
        mesh.network.weather = FAIR
        mesh.network.cut.clear()
        if isinstance(mesh.journal, MemoryJournal):
            mesh.journal.full = False
        for process in mesh.all_processes():
            process.slowness, process.load_fails = 1.0, 0.0
            if process.hung:
                process.wake()
        for dispatcher in mesh.dispatchers:
            dispatcher.stuck = False
        mesh.say("faults end")

    def _strike(self) -> None:
        if self._stopped:
            return
        self._mesh.random.choice(self._kinds)()
        self.begin()

    def _any(self) -> Process | None:
        processes = self._mesh.all_processes()
        return self._mesh.random.choice(processes) if processes else None

    def _kill(self) -> None:
        process = self._any()
        if process is not None:
            self._mesh.kill(process, "SIGKILL")

    def _hang(self) -> None:
        process = self._any()
        if process is not None and not process.hung:
            self._mesh.say(f"{process.place} generation {process.generation} hangs")
            process.hung = True
            self._mesh.clock.after(self._mesh.random.uniform(0.5, 30.0), process.wake)

    def _slow(self) -> None:
        process = self._any()
        if process is not None:
            process.slowness = self._mesh.random.choice([1.0, 2.0, 10.0, 2000.0])
            self._mesh.say(f"{process.place} is slower by {process.slowness}")

    def _cut_controller(self) -> None:
        self._cut(CONTROLLER)

    def _cut_dispatcher(self) -> None:
        self._cut(self._mesh.random.choice(self._mesh.dispatchers).id)

    def _cut(self, party: str) -> None:
        process = self._any()
        if process is not None and process.place != party:
            pair = frozenset({party, process.place})
            self._mesh.say(f"{party} and {process.place} are cut off from each other")
            self._mesh.network.cut.add(pair)
            seconds = self._mesh.random.uniform(0.5, 40.0)
            self._mesh.clock.after(seconds, lambda: self._mesh.network.cut.discard(pair))

    def _stick(self) -> None:
        dispatcher = self._mesh.random.choice(self._mesh.dispatchers)
        self._mesh.say(f"dispatcher {dispatcher.id} is stuck")
        dispatcher.stuck = True
        seconds = self._mesh.random.uniform(0.5, 20.0)
        self._mesh.clock.after(seconds, lambda: setattr(dispatcher, "stuck", False))

    def _kill_controller(self) -> None:
        self._mesh.kill_controller(self._mesh.random.uniform(0.2, 10.0))

    def _foul(self) -> None:
        self._mesh.network.weather = FOUL
        self._mesh.say("messages get lost, doubled and late")
        self._mesh.clock.after(10.0, lambda: setattr(self._mesh.network, "weather", FAIR))

    def _shift_load(self) -> None:
        random = self._mesh.random
        self._mesh.say("the load shifts")
        for layer in self._mesh.load:
            layer[:] = [random.paretovariate(1.0) for _ in layer]

    def _verb(self) -> None:
        mesh, random = self._mesh, self._mesh.random
        request = f"verb-{len(mesh.trace)}"
        verb = random.choice([*VERBS, "undrain", "uncordon"])
        dry_run = random.random() < 0.1
        if verb == "scale":
            shape = mesh.shape
            pool = random.choice(["cpu", "engine", "cqu"])
            size = shape.shards if pool == "cpu" else shape.engines
            mesh.ask(request, verb, pool, random.randint(max(1, size - 1), size + 2), dry_run)
        elif verb in ("pin", "ban", "unpin"):
            pool = random.choice(["cpu", "gpu", "cpu,gpu", "cqu", ""])
            expert = random.choice([*sorted(keys_of(mesh.shape)), None])
            name = f"{expert.group}/{expert.number}" if expert else "9/9"
            mesh.ask(request, verb, name if verb == "unpin" else f"{name} {pool}", 0, dry_run)
        else:
            mesh.ask(request, verb, random.choice(self._targets(verb)), 0, dry_run)

    def _targets(self, verb: str) -> list[str]:
        mesh = self._mesh
        places = list(mesh.state.intent.places) if mesh.state else []
        if verb == "rolling-restart":
            return [*places, "cpu", "engine", "all", "cpu-999"]
        if verb in ("drain", "undrain", "cordon", "uncordon"):
            return [*places, "cpu-999", "node/node-1", "node/node-9"]
        return [*places, "cpu-999"]

    def _fill_disk(self) -> None:
        """The journal cannot be written for a while."""
        journal = self._mesh.journal
        if isinstance(journal, MemoryJournal):
            self._mesh.say("the disk is full")
            journal.full = True
            seconds = self._mesh.random.uniform(0.5, 10.0)
            self._mesh.clock.after(seconds, lambda: setattr(journal, "full", False))

    def _node(self) -> None:
        """All processes of one node die, as they do with it."""
        node = f"node-{self._mesh.random.randrange(self._mesh.shape.nodes)}"
        self._mesh.say(f"{node} is lost")
        for process in self._mesh.all_processes():
            if process.node == node and self._mesh.random.random() < 0.7:
                self._mesh.kill(process, "its node is lost")

    def _pull_cable(self) -> None:
        """Nobody reaches the processes of one node for a while; they live on."""
        node = f"node-{self._mesh.random.randrange(self._mesh.shape.nodes)}"
        pairs = self._mesh.cut_node(node)
        seconds = self._mesh.random.uniform(0.5, 40.0)
        self._mesh.clock.after(seconds, lambda: self._mesh.network.cut.difference_update(pairs))
