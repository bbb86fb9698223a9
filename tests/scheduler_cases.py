"""The grids of options over which each scheduler is compared with the reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tests.scheduler_reference import Grid, grid

SPACINGS, PREDICTIONS = ["linspace", "leading", "trailing"], ["epsilon", "sample", "v_prediction"]
BETAS = ["linear", "scaled_linear", "squaredcos_cap_v2"]
SIGMAS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
BOTH = [True, False]
INFINITE = -math.inf


def steps(*numbers: int) -> list[dict[str, Any]]:
    return [{"num_inference_steps": n} for n in numbers]


CASES: dict[str, Grid] = {
    "DDIM": Grid(
        "DDIMScheduler",
        [
            *grid(
                timestep_spacing=SPACINGS,
                prediction_type=PREDICTIONS,
                rescale_betas_zero_snr=BOTH,
                clip_sample=BOTH,
                set_alpha_to_one=BOTH,
                steps_offset=[0, 1],
            ),
            *grid(
                beta_schedule=BETAS, thresholding=BOTH, sample_max_value=[1.0, 1.7], dynamic_thresholding_ratio=[0.9]
            ),
        ],
        steps(1, 5),
        [{}, {"eta": 0.6, "use_clipped_model_output": True}],
    ),
    "DDPM": Grid(
        "DDPMScheduler",
        [
            *grid(
                timestep_spacing=SPACINGS,
                prediction_type=PREDICTIONS,
                clip_sample=BOTH,
                rescale_betas_zero_snr=BOTH,
                variance_type=["fixed_small", "fixed_small_log", "fixed_large"],
            ),
            *grid(beta_schedule=[*BETAS, "sigmoid", "laplace"], thresholding=BOTH, clip_sample_range=[1.0, 2.0]),
        ],
        [*steps(1, 6), {"timesteps": [900, 500, 30, 0]}],
    ),
    "PNDM": Grid(
        "PNDMScheduler",
        grid(
            timestep_spacing=SPACINGS,
            skip_prk_steps=BOTH,
            set_alpha_to_one=BOTH,
            steps_offset=[0, 1],
            beta_schedule=BETAS,
        ),
        steps(1, 2, 5, 7, 20),
    ),
    "LCM": Grid(
        "LCMScheduler",
        grid(
            prediction_type=PREDICTIONS,
            clip_sample=BOTH,
            thresholding=BOTH,
            beta_schedule=BETAS,
            timestep_scaling=[10.0, 1.0],
            rescale_betas_zero_snr=BOTH,
        ),
        [*steps(1, 4), {"timesteps": [999, 500, 3]}, {"num_inference_steps": 4, "original_inference_steps": 20}],
    ),
    "TCD": Grid(
        "TCDScheduler",
        grid(
            prediction_type=PREDICTIONS,
            beta_schedule=BETAS,
            rescale_betas_zero_snr=BOTH,
            original_inference_steps=[50, 40],
        ),
        [*steps(1, 4), {"timesteps": [999, 500, 3]}, {"num_inference_steps": 4, "original_inference_steps": 20}],
        [{}, {"eta": 0.0}, {"eta": 1.0}],
    ),
    "Euler": Grid(
        "EulerDiscreteScheduler",
        [
            *grid(
                timestep_spacing=SPACINGS,
                prediction_type=PREDICTIONS,
                rescale_betas_zero_snr=BOTH,
                use_karras_sigmas=BOTH,
                interpolation_type=["linear", "log_linear"],
                timestep_type=["discrete", "continuous"],
            ),
            *grid(
                beta_schedule=BETAS,
                sigmas=SIGMAS,
                final_sigmas_type=["zero", "sigma_min"],
                sigma_min=[None, 0.1],
                sigma_max=[None, 50.0],
            ),
        ],
        steps(1, 6),
        [{}, {"s_churn": 3.0, "s_noise": 1.01}],
    ),
    "Euler, chosen levels": Grid(
        "EulerDiscreteScheduler",
        grid(prediction_type=PREDICTIONS),
        [{"sigmas": [700, 54.5, 15.8, 7.9, 0.4, 0.1, 0]}, {"timesteps": [999, 500, 3]}],
    ),
    "Euler ancestral": Grid(
        "EulerAncestralDiscreteScheduler",
        grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS, rescale_betas_zero_snr=BOTH, beta_schedule=BETAS),
        steps(1, 2, 7, 20),
    ),
    "Heun": Grid(
        "HeunDiscreteScheduler",
        grid(
            timestep_spacing=SPACINGS,
            prediction_type=PREDICTIONS,
            clip_sample=BOTH,
            beta_schedule=["linear", "exp"],
            sigmas=SIGMAS,
        ),
        steps(1, 6),
    ),
    "LMS": Grid(
        "LMSDiscreteScheduler",
        grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS, steps_offset=[0, 1], sigmas=SIGMAS),
        steps(1, 7),
        [{}, {"order": 2}],
    ),
    "KDPM2": Grid(
        "KDPM2DiscreteScheduler",
        grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS, beta_schedule=BETAS, sigmas=SIGMAS),
        steps(1, 6),
    ),
    "KDPM2 ancestral": Grid(
        "KDPM2AncestralDiscreteScheduler",
        grid(timestep_spacing=SPACINGS, prediction_type=PREDICTIONS, beta_schedule=BETAS, sigmas=SIGMAS),
        steps(1, 6),
    ),
    "DPM-Solver multistep, solvers": Grid(
        "DPMSolverMultistepScheduler",
        grid(
            algorithm_type=["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"],
            solver_order=[1, 2, 3],
            solver_type=["midpoint", "heun"],
            final_sigmas_type=["zero", "sigma_min"],
            lower_order_final=BOTH,
            euler_at_final=BOTH,
            prediction_type=PREDICTIONS,
        ),
        steps(6),
    ),
    "DPM-Solver multistep, levels": Grid(
        "DPMSolverMultistepScheduler",
        [
            *grid(
                solver_order=[3],
                final_sigmas_type=["zero", "sigma_min"],
                timestep_spacing=SPACINGS,
                beta_schedule=BETAS,
                rescale_betas_zero_snr=BOTH,
                sigmas=[*SIGMAS, {"use_lu_lambdas": True}],
                steps_offset=[1],
            ),
            *grid(
                lambda_min_clipped=[-5.1, INFINITE],
                timestep_spacing=SPACINGS,
                thresholding=BOTH,
                sample_max_value=[1.5],
                algorithm_type=["dpmsolver", "dpmsolver++"],
                final_sigmas_type=["sigma_min"],
                beta_schedule=BETAS,
            ),
            *grid(
                use_flow_sigmas=[True],
                flow_shift=[1.0, 3.0],
                prediction_type=[*PREDICTIONS, "flow_prediction"],
                solver_order=[1, 2, 3],
                final_sigmas_type=["sigma_min", "zero"],
            ),
        ],
        steps(1, 17),
    ),
    "DPM-Solver multistep, chosen timesteps": Grid(
        "DPMSolverMultistepScheduler",
        grid(solver_order=[1, 2, 3], prediction_type=PREDICTIONS),
        [{"timesteps": [999, 600, 300, 40]}],
    ),
    "DPM-Solver singlestep, solvers": Grid(
        "DPMSolverSinglestepScheduler",
        grid(
            algorithm_type=["dpmsolver", "dpmsolver++", "sde-dpmsolver++"],
            solver_order=[1, 2, 3],
            solver_type=["midpoint", "heun"],
            final_sigmas_type=["zero", "sigma_min"],
            lower_order_final=BOTH,
            prediction_type=PREDICTIONS,
        ),
        steps(6, 7),
    ),
    "DPM-Solver singlestep, levels": Grid(
        "DPMSolverSinglestepScheduler",
        [
            *grid(
                solver_order=[2, 3],
                beta_schedule=BETAS,
                thresholding=BOTH,
                lambda_min_clipped=[-5.1, INFINITE],
                sigmas=SIGMAS,
            ),
            *grid(
                use_flow_sigmas=[True],
                flow_shift=[1.0, 3.0],
                prediction_type=[*PREDICTIONS, "flow_prediction"],
                solver_order=[1, 2, 3],
                final_sigmas_type=["sigma_min", "zero"],
            ),
        ],
        [*steps(1, 2, 9), {"timesteps": [999, 600, 300, 40]}],
    ),
    "DEIS": Grid(
        "DEISMultistepScheduler",
        [
            *grid(
                solver_order=[1, 2, 3],
                timestep_spacing=SPACINGS,
                prediction_type=PREDICTIONS,
                lower_order_final=BOTH,
                sigmas=SIGMAS,
            ),
            *grid(
                solver_order=[2, 3],
                use_flow_sigmas=[True],
                flow_shift=[1.0, 3.0],
                thresholding=BOTH,
                prediction_type=[*PREDICTIONS, "flow_prediction"],
            ),
        ],
        steps(1, 6),
    ),
    "UniPC, solvers": Grid(
        "UniPCMultistepScheduler",
        grid(
            solver_order=[1, 2, 3, 4],
            predict_x0=BOTH,
            solver_type=["bh1", "bh2"],
            prediction_type=PREDICTIONS,
            lower_order_final=BOTH,
            final_sigmas_type=["zero", "sigma_min"],
            disable_corrector=[[], [0, 1]],
        ),
        steps(6),
    ),
    "UniPC, levels": Grid(
        "UniPCMultistepScheduler",
        [
            *grid(
                solver_order=[3],
                timestep_spacing=SPACINGS,
                beta_schedule=BETAS,
                final_sigmas_type=["zero", "sigma_min"],
                rescale_betas_zero_snr=BOTH,
                sigmas=SIGMAS,
                thresholding=BOTH,
            ),
            *grid(
                use_flow_sigmas=[True],
                use_karras_sigmas=BOTH,
                flow_shift=[1.0, 3.0],
                shift_terminal=[None, 0.1],
                prediction_type=[*PREDICTIONS, "flow_prediction"],
                final_sigmas_type=["sigma_min", "zero"],
            ),
        ],
        steps(1, 5),
    ),
    "UniPC, chosen flow sigmas": Grid(
        "UniPCMultistepScheduler",
        grid(use_flow_sigmas=[True], prediction_type=["flow_prediction"], shift_terminal=[None, 0.1]),
        [{"sigmas": np.array([1.0, 0.7, 0.2])}],
    ),
}
