"""The nodes of kijai's ComfyUI-CogVideoXWrapper 1.5.1, and those around them: their values by position.

Files of the page keep values by position, so these rows are in the wrapper's order of widgets.
"""

from collections.abc import Mapping, Sequence

from cogvx_jax.workflows.graphs import NUMBER, Widget

SAMPLER = "CogVideoSampler"
DECODE = "CogVideoDecode"
PROMPT = "CogVideoTextEncode"
ENCODE, ENCODE_FUN = "CogVideoImageEncode", "CogVideoImageEncodeFunInP"
MODELS = ("DownloadAndLoadCogVideoModel", "DownloadAndLoadCogVideoGGUFModel", "CogVideoXModelLoader")
LORAS: Mapping[str, str] = {  # kind -> folder of its files in ComfyUI's
    "CogVideoLoraSelect": "models/CogVideo/loras",
    "CogVideoLoraSelectComfy": "models/loras",
}
EMPTY = "EmptyLatentImage"

_LORA = (Widget("lora", str, ""), Widget("strength", NUMBER, 1.0), Widget("fuse_lora", bool, False))
_PART = (Widget("start_percent", NUMBER, 0.0), Widget("end_percent", NUMBER, 1.0))
WIDGETS: Mapping[str, Sequence[Widget]] = {
    SAMPLER: (
        Widget("num_frames", int, 49),
        Widget("steps", int, 50),
        Widget("cfg", NUMBER, 6.0),
        Widget("seed", int, 0, controlled=True),
        Widget("scheduler", str, "CogVideoXDDIM"),
        Widget("denoise_strength", NUMBER, 1.0),
    ),
    PROMPT: (Widget("prompt", str, ""), Widget("strength", NUMBER, 1.0), Widget("force_offload", bool, True)),
    ENCODE: (
        Widget("enable_tiling", bool, False),
        Widget("noise_aug_strength", NUMBER, 0.0),
        Widget("strength", NUMBER, 1.0),
        *_PART,
    ),
    ENCODE_FUN: (
        Widget("num_frames", int, 49),
        Widget("enable_tiling", bool, False),
        Widget("noise_aug_strength", NUMBER, 0.0),
    ),
    "DownloadAndLoadCogVideoModel": (
        Widget("model", str, ""),
        Widget("precision", str, "bf16"),
        Widget("quantization", str, "disabled"),
        Widget("enable_sequential_cpu_offload", bool, False),
        Widget("attention_mode", str, "sdpa"),
        Widget("load_device", str, "main_device"),
    ),
    "DownloadAndLoadCogVideoGGUFModel": (Widget("model", str, ""),),
    "CogVideoXModelLoader": (
        Widget("model", str, ""),
        Widget("base_precision", str, "bf16"),
        Widget("quantization", str, "disabled"),
    ),
    "CogVideoLoraSelect": _LORA,
    "CogVideoLoraSelectComfy": _LORA,
    "CogVideoXTeaCache": (Widget("rel_l1_thresh", NUMBER, 0.3),),
    "CogVideoEnhanceAVideo": (Widget("weight", NUMBER, 1.0), *_PART),
    "CogVideoContextOptions": (
        Widget("context_schedule", str, "uniform_standard"),
        Widget("context_frames", int, 48),
        Widget("context_stride", int, 4),
        Widget("context_overlap", int, 4),
        Widget("freenoise", bool, True),
    ),
    EMPTY: (Widget("width", int, 512), Widget("height", int, 512), Widget("batch_size", int, 1)),
    "LoadImage": (Widget("image", str, ""),),
    "LoadVideo": (Widget("file", str, ""),),
    "ImageResizeKJ": (
        Widget("width", int, 512),
        Widget("height", int, 512),
        Widget("upscale_method", str, "nearest-exact"),
        Widget("keep_proportion", bool, False),
        Widget("divisible_by", int, 2),
        Widget("width_input", NUMBER, 0),
        Widget("height_input", NUMBER, 0),
        Widget("crop", (str, int), "disabled"),
    ),
    "ImageScale": (
        Widget("upscale_method", str, "nearest-exact"),
        Widget("width", int, 512),
        Widget("height", int, 512),
        Widget("crop", str, "disabled"),
    ),
    "INTConstant": (Widget("value", int, 0),),
    "PrimitiveInt": (Widget("value", int, 0, controlled=True),),
    "PrimitiveNode": (Widget("value", (str, int, float, bool), 0, controlled=True),),
    "PrimitiveString": (Widget("value", str, ""),),
    "PrimitiveStringMultiline": (Widget("value", str, ""),),
    "StringConstant": (Widget("string", str, ""),),
    "StringConstantMultiline": (Widget("string", str, ""), Widget("strip_newlines", bool, True)),
    "CreateVideo": (Widget("fps", NUMBER, 30.0),),
}
CONSTANTS = {  # kind -> the value that it gives
    **dict.fromkeys(("INTConstant", "PrimitiveInt", "PrimitiveNode", "PrimitiveString"), "value"),
    "PrimitiveStringMultiline": "value",
    "StringConstant": "string",
    "StringConstantMultiline": "string",
}
RESIZES = ("ImageResizeKJ", "ImageScale")
COUNTED = "GetImageSizeAndCount"  # hands pictures on, and gives width, height and count
COMBINES = {"VHS_VideoCombine": "frame_rate", "CreateVideo": "fps"}  # what makes a file, and its rate
SAMPLERS = {  # of the wrapper -> ours; the others have none
    "CogVideoXDDIM": "ddim",
    "DDIM": "ddim",
    "CogVideoXDPMScheduler": "dpm",
    "DPM++": "dpmpp-2m",
    "Euler": "euler",
    "Euler A": "euler-ancestral",
    "UniPCMultistepScheduler": "unipc",
    "HeunDiscreteScheduler": "heun",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
}
POLICIES = {"uniform_standard": "uniform", "uniform_looped": "looped", "static_standard": "static"}
PUBLISHED = {  # hub ids of the same weights under other names
    "THUDM/CogVideoX-2b": "2b",
    "THUDM/CogVideoX-5b": "5b",
    "THUDM/CogVideoX-5b-I2V": "5b-i2v",
    "THUDM/CogVideoX1.5-5B": "1.5-5b",
    "THUDM/CogVideoX1.5-5B-I2V": "1.5-5b-i2v",
    "kijai/CogVideoX-5b-1.5-T2V": "1.5-5b",
    "kijai/CogVideoX-5b-1.5-I2V": "1.5-5b-i2v",
}
NOT_CARRIED = {  # inputs of the sampler that ask for more than a request of a prompt, a picture or a clip has
    "controlnet": "give --controlnet and --control, of docs/tasks.md",
    "tora_trajectory": "give --tora and --trajectory, of docs/tasks.md",
    "fastercache": "--reuse has other methods, of docs/performance.md",
}
