"""The samplers as rows: the class in diffusers of each, the keys that it reads, and what a request may choose."""

from __future__ import annotations

from .ddim import ddim
from .ddpm import ddpm
from .deis import deis
from .dpm2 import dpm2, dpm2_ancestral, dpm_2s_ancestral
from .dpmsde import dpm_sde
from .dpmsolver import dpm_3m_sde, dpm_solver
from .euler import euler, euler_ancestral
from .flow import FLOW, flow_euler
from .heun import heun
from .ipndm import ipndm
from .lcm import lcm
from .lms import lms
from .pndm import pndm
from .sasolver import sa_solver
from .settings import CLIP, LEVELS, RAMPS, SHIFTS, SIGMAS, SPACING, TRAINING, ZERO_SNR, Sampler
from .tcd import tcd
from .unipc import unipc

_LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED = {**_LATENT_BETAS, "beta_schedule": "scaled_linear"}
_TWO = ("epsilon", "v_prediction")
_DPM_SOLVER = (
    TRAINING | SPACING | SIGMAS | ZERO_SNR
    | {"solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"}
    | {"use_lu_lambdas", "lambda_min_clipped", "final_sigmas_type", "variance_type"}
)  # fmt: skip

# What diffusers' `set_timesteps` accepts, and the spacings of k-diffusion for samplers of noise levels.
_SPACED = frozenset({"levels"})
_TIMED = frozenset({"timesteps", "levels"})
_FREE = frozenset({"timesteps", "sigmas", "levels"})

SCHEDULERS: dict[str, Sampler] = {
    "ddim": Sampler(
        "DDIMScheduler",
        ddim,
        TRAINING | SPACING | ZERO_SNR | CLIP | {"set_alpha_to_one"},
        {"timestep_spacing": "leading"},
        clips=True,
        chooses=frozenset({"eta"}),
    ),
    "ddpm": Sampler(
        "DDPMScheduler",
        ddpm,
        TRAINING | SPACING | ZERO_SNR | CLIP | {"variance_type"},
        {"timestep_spacing": "leading", "variance_type": "fixed_small"},
        clips=True,
        chooses=frozenset({"timesteps"}),
    ),
    "pndm": Sampler(
        "PNDMScheduler",
        pndm,
        TRAINING | SPACING | {"skip_prk_steps", "set_alpha_to_one"},
        {"timestep_spacing": "leading", "set_alpha_to_one": False},
        predictions=_TWO,
    ),
    "ipndm": Sampler("sample_ipndm", ipndm, TRAINING | SPACING | SIGMAS, chooses=_FREE, in_diffusers=False),
    "lms": Sampler("LMSDiscreteScheduler", lms, TRAINING | SPACING | SIGMAS, chooses=_SPACED),
    "euler": Sampler(
        "EulerDiscreteScheduler",
        euler,
        TRAINING | SPACING | SIGMAS | ZERO_SNR | {"interpolation_type", "timestep_type", "final_sigmas_type"},
        chooses=_FREE,
    ),
    "euler-ancestral": Sampler(
        "EulerAncestralDiscreteScheduler",
        euler_ancestral,
        TRAINING | SPACING | ZERO_SNR,
        predictions=_TWO,
        chooses=_SPACED,
    ),
    "heun": Sampler(
        "HeunDiscreteScheduler", heun, TRAINING | SPACING | SIGMAS | CLIP, _LATENT_BETAS, chooses=_TIMED
    ),
    "dpm2": Sampler(
        "KDPM2DiscreteScheduler",
        dpm2,
        TRAINING | SPACING | SIGMAS,
        _LATENT_BETAS,
        predictions=_TWO,
        chooses=_SPACED,
    ),
    "dpm2-ancestral": Sampler(
        "KDPM2AncestralDiscreteScheduler",
        dpm2_ancestral,
        TRAINING | SPACING | SIGMAS,
        _LATENT_BETAS,
        predictions=_TWO,
        chooses=_SPACED,
    ),
    "dpm++2s-ancestral": Sampler(
        "sample_dpmpp_2s_ancestral",
        dpm_2s_ancestral,
        TRAINING | SPACING | SIGMAS,
        chooses=_FREE,
        in_diffusers=False,
    ),
    "dpm++2m": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _DPM_SOLVER,
        asks={"algorithm_type": "dpmsolver++", "solver_order": 2},
        chooses=_TIMED,
    ),
    "dpm++2m-sde": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _DPM_SOLVER,
        asks={"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
        chooses=_TIMED,
    ),
    "dpm++3m-sde": Sampler(
        "sample_dpmpp_3m_sde",
        dpm_3m_sde,
        TRAINING | SPACING | SIGMAS | ZERO_SNR,
        asks={
            "algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun", "lower_order_final": False,
        },
        chooses=_FREE,
        in_diffusers=False,
    ),
    "dpm++sde": Sampler(
        "DPMSolverSDEScheduler",
        dpm_sde,
        TRAINING | SPACING | SIGMAS,
        _LATENT_BETAS,
        predictions=_TWO,
        chooses=_SPACED,
    ),
    # diffusers' DEIS has keys for algorithm and solver, but only one of each.
    "deis": Sampler(
        "DEISMultistepScheduler",
        deis,
        TRAINING | SPACING | SIGMAS | {"solver_order", "lower_order_final"},
        chooses=_SPACED,
    ),
    "sa-solver": Sampler(
        "SASolverScheduler",
        sa_solver,
        TRAINING | SPACING | SIGMAS
        | {"predictor_order", "corrector_order", "algorithm_type", "lower_order_final", "lambda_min_clipped"},
        {"algorithm_type": "data_prediction"},
        asks={"algorithm_type": "data_prediction"},
        chooses=_SPACED,
    ),
    "unipc": Sampler(
        "UniPCMultistepScheduler",
        unipc,
        TRAINING | SPACING | SIGMAS | ZERO_SNR
        | {"solver_order", "predict_x0", "solver_type", "lower_order_final", "disable_corrector", "final_sigmas_type"},
        chooses=_SPACED,
    ),
    # diffusers' LCM and TCD have keys for spacing and for the last alpha but never read them: their
    # timesteps are those that the model was distilled on. TCD never reads those for clipping either.
    "lcm": Sampler(
        "LCMScheduler",
        lcm,
        TRAINING | ZERO_SNR | CLIP | {"original_inference_steps", "timestep_scaling"},
        _DISTILLED,
        chooses=frozenset({"timesteps"}),
    ),
    "tcd": Sampler(
        "TCDScheduler",
        tcd,
        TRAINING | ZERO_SNR | {"original_inference_steps"},
        _DISTILLED,
        chooses=frozenset({"timesteps", "eta"}),
    ),
}  # fmt: skip
"""Samplers by short name, each of which may be followed by a ramp or spacing: `dpm++2m-karras`."""

_FLOW_SOLVER = SHIFTS - {"shift"} | frozenset({
    "num_train_timesteps", "prediction_type", "use_flow_sigmas", "flow_shift", "solver_order", "algorithm_type",
    "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type",
})  # fmt: skip
_FLOW_ASKS = {"use_flow_sigmas": True, "prediction_type": FLOW, "solver_order": 2}

FLOW_SCHEDULERS: dict[str, Sampler] = {
    "euler": Sampler(
        "FlowMatchEulerDiscreteScheduler",
        flow_euler,
        SHIFTS
        | {"num_train_timesteps", "use_flow_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"},
        {"prediction_type": FLOW},
        predictions=(FLOW,),
        chooses=frozenset({"sigmas"}),
    ),
    "dpm++2m": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _FLOW_SOLVER,
        asks={**_FLOW_ASKS, "algorithm_type": "dpmsolver++"},
        predictions=(FLOW,),
    ),
    "dpm++2m-sde": Sampler(
        "DPMSolverMultistepScheduler",
        dpm_solver,
        _FLOW_SOLVER,
        asks={**_FLOW_ASKS, "algorithm_type": "sde-dpmsolver++"},
        predictions=(FLOW,),
    ),
}
"""The same for models that were trained by flow matching, such as Stable Diffusion 3."""

NAMES = (
    frozenset(SCHEDULERS)
    | {f"{name}-{ramp}" for name, row in SCHEDULERS.items() for ramp, key in RAMPS.items() if key in row.keys}
    | {f"{name}-{levels}" for name, row in SCHEDULERS.items() for levels in LEVELS if "levels" in row.chooses}
)
"""All names that `schedule` accepts."""

NEAREST = {
    "DPMSolverSinglestepScheduler": "dpm++2m",
    "IPNDMScheduler": "pndm",
    "DDIMInverseScheduler": "ddim",
    "DPMSolverMultistepInverseScheduler": "dpm++2m",
    "FlowMatchHeunDiscreteScheduler": "euler",
}
"""Classes of diffusers that aren't supported, for models that are, and the closest sampler to each."""

KNOWN_KEYS = frozenset[str]().union(*(row.keys for rows in (SCHEDULERS, FLOW_SCHEDULERS) for row in rows.values()))
"""Keys of a config that at least one of them reads."""


def parted(name: str) -> tuple[str, str]:
    """The base of a name and its ramp or spacing, which is empty if it has none: `dpm++2m-karras`, `euler-sgm-uniform`.

    The base may be unknown.
    """
    if name in SCHEDULERS:
        return name, ""
    found = next((word for word in (*RAMPS, *LEVELS) if name.endswith(f"-{word}")), "")
    return name.removesuffix(f"-{found}") if found else name, found
