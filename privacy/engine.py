"""PrivacyEngine: make a training loop private by changing two lines.

    module, optimizer, loader = engine.make_private(module=..., optimizer=..., data_loader=...,
                                                    noise_multiplier=1.1, max_grad_norm=1.0, release="digital")

The loop stays `zero_grad / loss.backward() / optimizer.step()`. Every step is written to the ledger before it is
released; training stops on the budget. A device is tested before the first release and before every other one: what
it drew is released only once its tests have passed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from noise_models.calibration import Calibration
from noise_models.errors import UsageError
from noise_models.generator import NoiseGenerator
from privacy import accounting, health_log
from privacy.adjacency import Adjacency
from privacy.guarantee import Guarantee
from privacy.ledger import Ledger, Release
from privacy.optimizer import PrivateOptimizer
from privacy.plan import Plan, refuse_types
from privacy.protocols import PrivateModule
from privacy.releases import RELEASES
from privacy.releases.clipped import ClippedRelease
from privacy.releases.source import NoiseSource, Parts
from privacy.sampling import PoissonLoader

ModuleT = TypeVar("ModuleT", bound=nn.Module)

ADJACENCY = Adjacency.ADD_REMOVE
# Bounds far from any use, within which float32 noise neither overflows nor loses its low bits.
MOST_NOISE = 1e6
LEAST_NORM, MOST_NORM = 1e-12, 1e12


class BudgetExhaustedError(RuntimeError):
    """The next release would pass the target epsilon; nothing was released."""


class PrivacyEngine:
    """Holds the ledger and the accountant of one private run.

    Attributes:
        ledger: the record of every release; None before `make_private`.
        source: where the release's noise comes from; None before `make_private`.
    """

    def __init__(
        self,
        *,
        ledger: Path | str | None = None,
        resume: bool = False,
        reproducible_seed: int | None = None,
        unsafe_diagnostics: bool = False,
        accountant: str = "pld",
        calibration: Calibration | None = None,
        before_writing: Callable[[], None] | None = None,
        assumptions: Sequence[str] = (),
    ) -> None:
        """
        Args:
            ledger: file of the ledger; None keeps it in memory.
            resume: continue the ledger that is there. Keys are always new.
            reproducible_seed: seed all generators, for experiments; the guarantee's kind is then `none`.
            unsafe_diagnostics: the caller shows figures computed from private records; the guarantee's kind is
                then `none`.
            accountant: one of `privacy.accounting.ACCOUNTANTS`.
            calibration: what the device's noise was measured to be, for releases that credit it; the ledger names
                it, and no other may go on with the run.
            before_writing: called by `make_private` once everything was checked, just before the ledger is
                created or continued.
            assumptions: what the caller takes for granted besides; printed with the guarantee.
        Raises:
            UsageError: an unknown accountant.
        """
        if accountant not in accounting.ACCOUNTANTS:
            raise UsageError(
                f"unknown accountant {accountant!r}; use one of {', '.join(accounting.ACCOUNTANTS)}"
            )
        self.ledger: Ledger | None = None
        self.source: NoiseSource | None = None
        self._path = None if ledger is None else Path(ledger)
        self._resume = resume
        self._seed = reproducible_seed
        self._unsafe = unsafe_diagnostics
        self._accountant = accountant
        self._calibration = calibration
        self._before_writing = before_writing
        self._assumptions = tuple(assumptions)
        self._limit: int | None = None
        self._beta = 0.0
        self._failed = False

    # ---- the Opacus-style face

    def make_private(
        self,
        *,
        module: ModuleT,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        noise_multiplier: float,
        max_grad_norm: float,
        release: str = "digital",
        poisson_sampling: bool = True,
        public_size: int | None = None,
        max_physical_batch_size: int | None = None,
        target_epsilon: float | None = None,
        target_delta: float | None = None,
    ) -> tuple[ModuleT, PrivateOptimizer, PoissonLoader]:
        """Train `module` privately from now on.

        Args:
            module: an aligned module (optical_dfa.align); its trained layers record contributions.
            optimizer: any torch optimizer over its parameters.
            data_loader: its data set, collate function and batch size (the EXPECTED one) are used; batches are
                redrawn by Poisson sampling.
            noise_multiplier: standard deviation of the noise over the sensitivity of the clipped sum, > 0.
            max_grad_norm: C, clipping norm of one record's whole stack.
            release: a name of `privacy.releases.RELEASES`.
            poisson_sampling: must be True; the argument is there for Opacus users.
            public_size: N, declared public; the sample rate is batch size / N. Default: the size of the data set,
                which is then public.
            max_physical_batch_size: steps larger than this are handed out in parts; step on every part.
            target_epsilon: a budget; a release that would pass it raises BudgetExhaustedError.
            target_delta: delta of the budget and of the ledger's statement.
        Returns:
            (module, optimizer, loader) to use in place of the given ones.
        Raises:
            UsageError: anything that would break the guarantee, before anything is released.
            DeviceError: the device's dark frames are not as credited, or its calibration does not serve; the ledger
                says why.
        """
        refuse_types({"noise_multiplier": noise_multiplier}, {})
        if not 0 < noise_multiplier <= MOST_NOISE:
            raise UsageError(
                f"noise_multiplier is {noise_multiplier}; a private release needs a positive number up to "
                f"{MOST_NOISE:g}"
            )
        budget = {"target_epsilon": target_epsilon, "target_delta": target_delta}
        refuse_types({name: value for name, value in budget.items() if value is not None}, {})
        if target_epsilon is not None and target_delta is None:
            raise UsageError("a budget is target_epsilon at target_delta; give target_delta too")
        plan = Plan(data_loader, poisson_sampling, public_size, max_physical_batch_size)
        return self._make(
            module,
            optimizer,
            plan,
            release,
            max_grad_norm,
            lambda event: noise_multiplier,
            target_epsilon,
            target_delta,
        )

    def make_private_with_epsilon(
        self,
        *,
        module: ModuleT,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        max_grad_norm: float,
        release: str = "digital",
        poisson_sampling: bool = True,
        public_size: int | None = None,
        max_physical_batch_size: int | None = None,
    ) -> tuple[ModuleT, PrivateOptimizer, PoissonLoader]:
        """As `make_private`, with the least noise that keeps `epochs` epochs within the target.

        Raises:
            UsageError: as `make_private`, or a target that no noise reaches.
        """
        refuse_types({"target_epsilon": target_epsilon, "target_delta": target_delta}, {"epochs": epochs})
        if epochs < 1:
            raise UsageError(f"epochs is {epochs}; it must be at least 1")
        plan = Plan(data_loader, poisson_sampling, public_size, max_physical_batch_size)

        def calibrate(event: Release) -> float:
            return accounting.noise_multiplier(
                target_epsilon,
                target_delta,
                plan.sample_rate,
                epochs * plan.steps,
                ADJACENCY,
                self._accountant,
                log_ratio=event.log_ratio,
                log_inflation=event.log_inflation,
                mass=event.mass,
                beta=self._beta,
            )

        return self._make(
            module, optimizer, plan, release, max_grad_norm, calibrate, target_epsilon, target_delta
        )

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of everything released so far, at `delta`; inf if the run gives no guarantee.

        Raises:
            UsageError: before `make_private`, or a delta outside (0, 1).
        """
        return self.get_guarantee(delta).epsilon

    def get_guarantee(self, delta: float) -> Guarantee:
        """The statement about everything released so far: epsilon with all that it depends on."""
        if self.ledger is None:
            raise UsageError("there is no guarantee before make_private")
        epsilon = accounting.epsilon(self.ledger.tally(), delta, ADJACENCY, self._accountant, beta=self._beta)
        return Guarantee.of_run(self.ledger.header(), epsilon, delta, self._accountant)

    def steps_left(self) -> int | None:
        """Releases the budget still allows; None without a budget."""
        if self.ledger is None or self._limit is None:
            return None
        return max(0, self._limit - self.ledger.count())

    def close(self) -> None:
        """Close the ledger."""
        if self.ledger is not None:
            self.ledger.close()

    # ---- how it is put together

    def _make(
        self,
        module: ModuleT,
        optimizer: Optimizer,
        plan: Plan,
        release: str,
        max_grad_norm: float,
        noise_multiplier: Callable[[Release], float],
        target_epsilon: float | None,
        target_delta: float | None,
    ) -> tuple[ModuleT, PrivateOptimizer, PoissonLoader]:
        """`noise_multiplier` is asked once the cost of one step is known."""
        if self.ledger is not None:
            raise UsageError("this engine already serves a module; take a new PrivacyEngine for another")
        refuse_types({"max_grad_norm": max_grad_norm}, {})
        if not LEAST_NORM <= max_grad_norm <= MOST_NORM:
            raise UsageError(
                f"max_grad_norm is {max_grad_norm}; it must be a number from {LEAST_NORM:g} to {MOST_NORM:g}"
            )
        face = _private_face(module)
        _refuse_distributed()
        resumed = self._resumed()
        with ExitStack() as undo:
            if resumed is not None:
                undo.callback(resumed.close)
            source = self._source(release, face.backend, resumed)
            coins, masks = self._generator("sampling", resumed), self._generator("masks", resumed)
            capture = face.start_capture()
            undo.callback(face.stop_capture)
            clipped = ClippedRelease(
                capture,
                source,
                max_grad_norm=max_grad_norm,
                expected_batch_size=plan.expected_batch_size,
                max_physical_batch_size=plan.max_physical_batch_size,
            )
            self._beta = source.beta
            sigma = noise_multiplier(clipped.event(plan.sample_rate, 1.0))
            event = clipped.event(plan.sample_rate, sigma)
            self._refuse_worthless(event, target_delta)
            loader = PoissonLoader(
                plan.loader, plan.sample_rate, plan.steps, coins, plan.max_physical_batch_size
            )
            private = PrivateOptimizer(
                optimizer, capture.parameters, module, lambda: self._step(loader, clipped, event)
            )
            undo.callback(private.hand_back)
            header = self._header(face, event, source, plan, max_grad_norm, target_epsilon, target_delta)
            ledger = self._open(header, resumed)
            if resumed is None:
                undo.callback(ledger.close)
            for generator in (*source.generators, coins, masks):
                ledger.register_key(generator.fingerprint(), generator.name)
            health_log.start_up(source, ledger)
            if target_epsilon is not None and target_delta is not None:
                self._limit = ledger.count() + accounting.steps_within(
                    target_epsilon,
                    target_delta,
                    event,
                    ADJACENCY,
                    self._accountant,
                    spent=ledger.tally(),
                    beta=self._beta,
                )
            undo.pop_all()
        capture.expected_records = lambda: _pending(loader)
        capture.mask_seed = lambda: int(masks.uint64(1)[0])
        self.ledger, self.source = ledger, source
        return module, private, loader

    def _step(self, loader: PoissonLoader, clipped: ClippedRelease, event: Release) -> Tensor | None:
        """One `optimizer.step()`: take the batch in; if it completes the step, write the ledger and release."""
        batch, ledger = loader.current, self.ledger
        if self._failed:
            raise UsageError(
                "an earlier step failed half-way, so no further one is released; resume from the ledger"
            )
        if batch is None or batch.stepped or ledger is None:
            raise UsageError("step() without a new batch from the private loader; step once on every batch")
        if batch.first and self._limit is not None and ledger.count() >= self._limit:
            raise BudgetExhaustedError(
                f"the budget of {self._limit} releases is spent; a further step would pass the target epsilon"
            )
        if batch.records and not clipped.contributions.taught:
            raise UsageError(
                "no backward pass has reached this batch; never leave one out (a record that is not finite already "
                "contributes zero)"
            )
        try:
            clipped.absorb(first=batch.first)
            batch.stepped = True
            if not batch.final:
                return None
            with health_log.noting_failures(ledger, "step"):
                clipped.add_noise(event.noise_multiplier)
                clipped.source.vouch()
            health_log.register_new_keys(clipped.source, ledger)
            ledger.append_release(event)  # on disk before anything is released
            return clipped.release()
        except BaseException:
            self._failed = True
            clipped.discard()
            raise

    def _refuse_worthless(self, event: Release, delta: float | None) -> None:
        """A release after which no epsilon can be stated is not made."""
        if delta is None:
            return
        if math.isinf(accounting.epsilon({event: 1}, delta, ADJACENCY, self._accountant, beta=self._beta)):
            raise UsageError(
                f"one release with noise multiplier {event.noise_multiplier:g} has no finite epsilon at delta "
                f"{delta:g} (its noise is exact up to a mass of {event.mass:.2g}); raise one of the two"
            )

    def _generator(self, name: str, resumed: Ledger | None) -> NoiseGenerator:
        """A secret generator, or a seeded one that no earlier part of this run has used."""
        if self._seed is None:
            return NoiseGenerator.secure(name)
        part = 0 if resumed is None else resumed.count()
        return NoiseGenerator.seeded(self._seed, f"{name} from release {part}")

    def _source(self, release: str, device: Any, resumed: Ledger | None) -> NoiseSource:
        if release not in RELEASES:
            raise UsageError(f"unknown release {release!r}; choose one of {', '.join(RELEASES)}")
        parts = Parts(
            device,
            lambda name: self._generator(name, resumed),
            self._calibration,
            () if resumed is None else health_log.known_digests(resumed),
        )
        source: NoiseSource = import_module(f"privacy.releases.{release.replace('-', '_')}").make(parts)
        if self._calibration is not None and source.calibration is None:
            raise UsageError(
                f"a calibration was given, but release {release} credits none of the device's noise; drop it, or use "
                "release dark-frame"
            )
        return source

    def _resumed(self) -> Ledger | None:
        if not self._resume:
            return None
        if self._path is None:
            raise UsageError("there is no ledger to resume; give its path")
        return Ledger.open(self._path)

    def _header(
        self,
        module: PrivateModule,
        event: Release,
        source: NoiseSource,
        plan: Plan,
        max_grad_norm: float,
        target_epsilon: float | None,
        target_delta: float | None,
    ) -> dict[str, Any]:
        """Everything the audit needs; equal for every part of a run."""
        secret = self._seed is None and all(generator.secret for generator in source.generators)
        return {
            "release": source.name,
            "adjacency": ADJACENCY.value,
            "accountant": self._accountant,
            "sample_rate": event.sample_rate,
            "noise_multiplier": event.noise_multiplier,
            "max_grad_norm": max_grad_norm,
            "sensitivity": event.sensitivity,
            "dimension": event.dimension,
            "nominal_size": plan.size,
            "batch_size": plan.expected_batch_size,
            "target_epsilon": target_epsilon,
            "delta": target_delta,
            "reproducible": not secret,
            "unsafe_diagnostics": self._unsafe,
            "device_share": source.device_share,
            "calibration_beta": source.beta,
            "calibration": health_log.identity(source.calibration),
            "credit": source.describe(),
            "assumptions": [*source.assumptions, *self._assumptions, *_ASSUMPTIONS],
            "module": module.describe(),
            "version": version("optical-dfa"),
        }

    def _open(self, header: dict[str, Any], resumed: Ledger | None) -> Ledger:
        if resumed is not None:
            before = resumed.header()
            health_log.refuse_other_calibration(resumed, header)
            for key, value in json.loads(json.dumps(header)).items():
                if before.get(key) != value:
                    raise UsageError(
                        f"the run to resume had {key} {before.get(key)!r}, not {value!r}; resume it with its own "
                        "settings"
                    )
        if self._before_writing is not None:
            self._before_writing()
        return Ledger.create(self._path, header) if resumed is None else resumed


_ASSUMPTIONS = (
    "the size N of the data set, the sample rate and the number of steps are public",
    "the sampling coins and the noise are secret",
    "row i of every input, in every pass over a batch, is computed from record i of that batch alone: no batch "
    "statistics, no mixing of records, no padding to the longest; random augmentation is drawn record by record from "
    "secret randomness",
    "the loss adds up the records' own losses, or averages them where loss_reduction says so: none of them depends on "
    "other records or on their number (a mean with class weights or ignore_index does: take reduction='sum')",
    "every batch is trained on alike: nothing in the loop depends on the loss, the outputs or the size of a batch, and "
    "the module's code and settings stay as they were probed",
    "one record is one person's whole contribution (duplicates need a group notion)",
    "arithmetic is exact beyond the rounding added to the sensitivity: floating-point noise is taken for Gaussian "
    "noise, and a record's own contribution does not depend on its place in the batch",
    "timing, memory and power are side channels outside the guarantee",
)


def _private_face(module: nn.Module) -> PrivateModule:
    """The module as one that can be made private."""
    if isinstance(module, PrivateModule) and not hasattr(module, "_orig_mod"):
        return cast(PrivateModule, module)
    raise UsageError(
        f"module is a {type(module).__name__}; give the aligned module itself: optical_dfa.align(module, "
        'rule="dfa"), or rule="bp" for backpropagation (compiled and parallel wrappers are not supported)'
    )


def _pending(loader: PoissonLoader) -> int | None:
    """Records of the batch that still awaits its step."""
    batch = loader.current
    return None if batch is None or batch.stepped else batch.records


def _refuse_distributed() -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UsageError(
            f"private training on {distributed.get_world_size()} processes is not supported (a worker's empty batch "
            "would lose noise); train in one process"
        )
