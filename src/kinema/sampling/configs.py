"""The schedulers' configurations: published field names, the reference's defaults, and what may stand in each field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from ..config import Config
from .betas import BetaSchedule
from .schedule import Prediction
from .spacing import Spacing

AnyVariance = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Config):
    """What every scheduler is told.

    `given` holds the fields that were stated rather than left to a default: only those pass on to another scheduler,
    whose own defaults serve for the rest.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: Prediction = "epsilon"
    given: frozenset[str] | None = field(default=None, repr=False, compare=False)

    skipped: ClassVar[frozenset[str]] = frozenset({"unknown", "given"})
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {}  # values of other schedulers, and what serves for them here

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str = "configuration") -> Self:
        """Builds from published keys or from any scheduler's configuration; unknown keys are kept aside."""
        items = stated(data)
        for key, names in cls.aliases.items():
            if isinstance(items.get(key), str):
                items[key] = names.get(items[key], items[key])
        built = super().read(items, where)
        return replace(built, given=frozenset(items) & {f.name for f in fields(cls)})

    def everything(self) -> dict[str, Any]:
        """All published fields and all keys kept aside, as JSON can hold them."""
        kept = {key: value for key, value in self.unknown.items() if not key.startswith("_")}
        return {**kept, **self.write()}


def stated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a configuration was told, without what it filled in itself."""
    given = getattr(data, "given", None)
    told = {key: value for key, value in data.items() if given is None or key in given}
    filled = told.pop("_use_default_values", ())  # how the reference notes the same
    told = {key: value for key, value in told.items() if key not in filled}
    betas = told.get("trained_betas")
    if betas is not None and hasattr(betas, "tolist"):  # an array or tensor
        told["trained_betas"] = betas.tolist()
    return {**getattr(data, "unknown", {}), **told}


@dataclass(frozen=True, kw_only=True)
class _Diffusion(SchedulerConfig):
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"


@dataclass(frozen=True, kw_only=True)
class _Spaced(SchedulerConfig):
    timestep_spacing: Spacing = "linspace"
    steps_offset: int = 0


@dataclass(frozen=True, kw_only=True)
class _Clipped(SchedulerConfig):
    clip_sample: bool = True
    clip_sample_range: float = 1.0


@dataclass(frozen=True, kw_only=True)
class _Thresholded(SchedulerConfig):
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0


@dataclass(frozen=True, kw_only=True)
class _Rescaled(SchedulerConfig):
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True, kw_only=True)
class _Sigmas(SchedulerConfig):
    """Sigmas between the extremes of training, or between those given here."""

    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    sigma_min: float | None = None
    sigma_max: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Flow(SchedulerConfig):
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"


@dataclass(frozen=True, kw_only=True)
class DDIMConfig(_Diffusion, _Spaced, _Clipped, _Thresholded, _Rescaled):
    timestep_spacing: Spacing = "leading"
    set_alpha_to_one: bool = True


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(_Diffusion, _Spaced, _Clipped, _Thresholded, _Rescaled):
    timestep_spacing: Spacing = "leading"
    variance_type: AnyVariance | None = "fixed_small"


@dataclass(frozen=True, kw_only=True)
class PNDMConfig(_Diffusion, _Spaced):
    timestep_spacing: Spacing = "leading"
    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False


@dataclass(frozen=True, kw_only=True)
class DistilledConfig(_Diffusion, _Spaced, _Clipped, _Thresholded, _Rescaled):
    """LCM's and TCD's."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    timestep_spacing: Spacing = "leading"
    clip_sample: bool = False
    set_alpha_to_one: bool = True
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0


@dataclass(frozen=True, kw_only=True)
class EulerConfig(_Diffusion, _Spaced, _Rescaled, _Sigmas):
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {"prediction_type": {"original_sample": "sample"}}


@dataclass(frozen=True, kw_only=True)
class EulerAncestralConfig(_Diffusion, _Spaced, _Rescaled):
    pass


@dataclass(frozen=True, kw_only=True)
class LMSConfig(_Diffusion, _Spaced, _Sigmas):
    pass


@dataclass(frozen=True, kw_only=True)
class KDPM2Config(_Diffusion, _Spaced, _Sigmas):
    beta_start: float = 0.00085
    beta_end: float = 0.012


@dataclass(frozen=True, kw_only=True)
class HeunConfig(KDPM2Config, _Clipped):
    clip_sample: bool = False


_FOREIGN_SOLVERS = ("midpoint", "heun", "logrho", "bh1", "bh2")


@dataclass(frozen=True, kw_only=True)
class _HighOrder(_Flow, _Thresholded, _Sigmas):
    solver_order: int = 2
    lower_order_final: bool = True


@dataclass(frozen=True, kw_only=True)
class _DPMSolver(_HighOrder):
    solver_order: Literal[1, 2, 3] = 2
    time_shift_type: Literal["exponential"] = "exponential"
    solver_type: Literal["midpoint", "heun"] = "midpoint"
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    lambda_min_clipped: float = -math.inf
    variance_type: AnyVariance | None = None  # appended variances are left aside, whatever they mean
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {name: "midpoint" for name in _FOREIGN_SOLVERS if name not in ("midpoint", "heun")},
    }


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistepConfig(_DPMSolver, _Spaced, _Rescaled):
    algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"] = "dpmsolver++"
    euler_at_final: bool = False
    use_lu_lambdas: bool | None = False


@dataclass(frozen=True, kw_only=True)
class DPMSolverSinglestepConfig(_DPMSolver):
    algorithm_type: Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver++"] = "dpmsolver++"
    lower_order_final: bool = False


@dataclass(frozen=True, kw_only=True)
class DEISMultistepConfig(_HighOrder, _Spaced):
    solver_order: Literal[1, 2, 3] = 2
    time_shift_type: Literal["exponential"] = "exponential"
    algorithm_type: Literal["deis"] = "deis"
    solver_type: Literal["logrho"] = "logrho"
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
        "solver_type": dict.fromkeys(_FOREIGN_SOLVERS, "logrho"),
    }


@dataclass(frozen=True, kw_only=True)
class UniPCMultistepConfig(_HighOrder, _Spaced, _Rescaled):
    solver_type: Literal["bh1", "bh2"] = "bh2"
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    solver_p: None = None
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    shift_terminal: float | None = None
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "solver_type": {name: "bh2" for name in _FOREIGN_SOLVERS if not name.startswith("bh")},
    }
