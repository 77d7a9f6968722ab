"""Every word of the page, in each language: one table."""

from typing import Any

from cogvx_jax.pipelines.options import perhaps

LANGUAGES = {"en": "English", "zh": "中文"}

WORDS: dict[str, tuple[str, str]] = {  # key -> English, Chinese
    "title": ("Videos by {model}", "{model} 视频生成"),
    "language": ("Language", "语言"),
    "sign in": (
        "Your name as the file of keys has it, and your API key as the password.",
        "用户名为密钥文件中的名字，密码为您的 API 密钥。",
    ),
    # --- the form
    "prompt": ("Prompt", "提示词"),
    "prompt.placeholder": (
        "What the video shows, in English, in less than 200 words",
        "用英文描述视频内容，少于 200 个单词",
    ),
    "movement": ("Camera movement", "镜头运动"),
    "movement.help": ("Added to the prompt.", "将以英文附加到提示词。"),
    "movement.none": ("As the prompt says", "由提示词决定"),
    "formulas": ("How to write a prompt", "如何写提示词"),
    "examples": ("Examples", "示例"),
    "improve": ("Improve the prompt", "优化提示词"),
    "undo": ("Undo", "撤销"),
    "improve.none": (
        "To improve and translate prompts the server needs a language model: OPENAI_BASE_URL or OPENAI_API_KEY.",
        "优化和翻译提示词需要为服务器配置语言模型：OPENAI_BASE_URL 或 OPENAI_API_KEY。",
    ),
    "improve.done": (
        "{llm} wrote this prompt; Undo gives yours back.",
        "该提示词由 {llm} 改写；点“撤销”恢复原文。",
    ),
    "improve.failed": ("{message}", "未能优化提示词：{message}"),
    "other language": (
        "The prompt looks {found}, and the model knows English: improve or translate it first.",
        "提示词看起来不是英文（{found}），而模型只懂英文：请先优化或翻译。",
    ),
    "from text": ("From text", "文生视频"),
    "from image": ("From an image", "图生视频"),
    "from clip": ("From a video", "视频生视频"),
    "from text.help": ("The prompt alone says what is seen.", "仅由提示词决定画面。"),
    "text.needs": (
        "{model} needs a picture or a clip; `cogvx serve --model 5b` makes videos from text.",
        "{model} 需要图片或视频；`cogvx serve --model 5b` 可由文字生成。",
    ),
    "image.none": (
        "{model} takes no picture; `cogvx serve --model 5b-i2v` makes videos from one.",
        "{model} 不支持图片；`cogvx serve --model 5b-i2v` 可由图片生成视频。",
    ),
    "clip.none": (
        "{model} redraws no video; `cogvx serve --model 5b` does.",
        "{model} 不支持改绘视频；`cogvx serve --model 5b` 支持。",
    ),
    "image": ("First frame", "首帧"),
    "last_image": ("Last frame", "尾帧"),
    "video": ("Video to redraw", "要改绘的视频"),
    "mask": ("Mask: what is white is made anew", "蒙版：白色部分重新生成"),
    "edit": ("Video to edit, keeping its layout and motion", "要编辑的视频（保留构图与运动）"),
    "extend": ("Video to go on with", "要续写的视频"),
    "control": ("Video to follow: depth, edges or poses", "控制视频：深度、边缘或姿态"),
    "more clips": ("Masks, edits, longer videos", "蒙版、编辑与续写"),
    "settings": ("Settings", "设置"),
    "negative_prompt": ("Negative prompt", "反向提示词"),
    "negative_prompt.help": ("What the video is not to show.", "不希望出现的内容。"),
    "size": ("Size", "尺寸"),
    "size.help": ("WIDTHxHEIGHT in pixels, multiples of 16.", "宽x高，像素，16 的倍数。"),
    "frames": ("Frames", "帧数"),
    "frames.help": ("{unit}N+1; {own} are {seconds} seconds.", "{unit}N+1；{own} 帧为 {seconds} 秒。"),
    "steps": ("Steps", "步数"),
    "steps.help": ("More take longer and draw finer.", "越多越慢，画面越精细。"),
    "guidance_scale": ("Guidance", "引导强度"),
    "guidance_scale.help": ("Weight of the prompt; 1 turns it off.", "提示词的权重；1 为关闭。"),
    "sampler": ("Sampler", "采样器"),
    "sampler.help": ("How steps are taken.", "每一步的计算方法。"),
    "strength": ("Strength", "重绘强度"),
    "strength.help": ("How much of the video is redrawn.", "视频被改绘的程度。"),
    "fps": ("Frames per second", "帧率"),
    "fps.help": ("Of the file; the motion is the model's.", "只影响文件播放速度。"),
    "use_dynamic_cfg": ("Dynamic guidance", "动态引导"),
    "use_dynamic_cfg.help": ("Guidance varies over the steps.", "引导强度随步数变化。"),
    "tiling": ("Decode in tiles", "分块解码"),
    "tiling.help": ("Saves memory; the result differs.", "节省内存，结果略有不同。"),
    "image_noise": ("Noise on the picture", "图片噪声"),
    "image_noise.help": ("More of it makes more motion.", "越大运动越强。"),
    "mask_dilation": ("Grow the mask", "蒙版扩张"),
    "mask_dilation.help": ("By so many pixels, which hides seams.", "按像素扩张，可隐藏接缝。"),
    "control_strength": ("Strength of control", "控制强度"),
    "control_strength.help": ("How much of the control video counts.", "控制视频的影响程度。"),
    "control_start": ("Control from", "控制开始"),
    "control_start.help": ("First part of the steps that sees it.", "从步数的哪一部分开始。"),
    "control_end": ("Control to", "控制结束"),
    "control_end.help": ("Last part of the steps that sees it.", "到步数的哪一部分结束。"),
    "reuse": ("Reuse of computation", "计算复用"),
    "reuse.help": (
        "Faster and lossy: every:2, teacache:0.2, first-block:0.1, pab:2.",
        "更快但有损：every:2、teacache:0.2、first-block:0.1、pab:2。",
    ),
    "guidance": ("Guidance in some steps", "部分步引导"),
    "guidance.help": ("Faster and lossy: interval:0.2-0.8 or delta:2.", "更快但有损：interval:0.2-0.8 或 delta:2。"),
    "guider": ("Way of guidance", "引导方式"),
    "guider.help": (
        "cfg:rescale=0.7, zero-star, apg:eta=0.5, stg:layers=11, slg or pag.",
        "cfg:rescale=0.7、zero-star、apg:eta=0.5、stg:layers=11、slg 或 pag。",
    ),
    "enhance": ("Enhance-A-Video", "Enhance-A-Video 增强"),
    "enhance.help": ("Ties frames together; 1 is a beginning.", "增强帧间联系，可从 1 开始。"),
    "windows": ("Windows", "滑动窗口"),
    "windows.help": ("FRAMES:OVERLAP, such as 48:8, for longer videos.", "帧数:重叠，如 48:8，用于更长的视频。"),
    "positions": ("Positions", "位置编码"),
    "positions.help": ("riflex, for videos longer than trained.", "riflex 用于超过训练长度的视频。"),
    "strips": ("Strips of the decoder", "解码条数"),
    "strips.help": ("Saves memory, same result; empty is as many as needed.", "节省内存，结果相同；留空为自动。"),
    "seed": ("Seed", "随机种子"),
    "seed.help": ("The same seed gives the same video.", "相同种子得到相同视频。"),
    "random": ("New seed each time", "每次随机"),
    "count": ("How many", "视频数量"),
    "count.help": ("At once, each with its own seed.", "同时生成，种子各不相同。"),
    "loras": ("LoRAs", "LoRA"),
    "loras.help": (
        "Files in the folder of `cogvx serve --loras`, and what ships with the model.",
        "`cogvx serve --loras` 目录中的文件，以及随模型提供的。",
    ),
    "weights": ("Weights of the LoRAs, in their order", "LoRA 权重，按顺序"),
    "weights.help": ("Such as 0.8, 0.5; 1 where none is given.", "例如 0.8, 0.5；缺省为 1。"),
    "few steps": (
        "These LoRAs are for {steps} steps of {sampler} at guidance {guidance}; the form has that now.",
        "所选 LoRA 用于 {steps} 步、{sampler} 采样、引导强度 {guidance}，已填入表单。",
    ),
    "finer": ("Finer points", "高级选项"),
    "finish": ("Finishing", "后期处理"),
    "upscaling_scale": ("Super-resolution", "超分辨率"),
    "upscaling_scale.help": ("How many times larger each side is; empty leaves it.", "边长放大倍数，留空为不放大。"),
    "upscaling_scale.none": (
        "What enlarges videos is not installed: pip install 'cogvx_jax[finish]'.",
        "服务器未安装超分辨率模型：pip install 'cogvx_jax[finish]'。",
    ),
    "output_fps": ("Frames a second, interpolated", "插帧后的帧率"),
    "output_fps.help": ("Such as 16, 30 or 60; empty is as it is made.", "例如 16、30 或 60，留空为不插帧。"),
    "output_fps.none": (
        "What interpolates frames is not installed: pip install 'cogvx_jax[finish]'.",
        "服务器未安装插帧模型：pip install 'cogvx_jax[finish]'。",
    ),
    "with_audio": ("Sound", "音效"),
    "with_audio.help": ("Made for the video by the server's maker of sound.", "由服务器的音效程序根据视频生成。"),
    "with_audio.none": (
        "This server has no maker of sound; cogvx serve --sound-from names one.",
        "服务器未配置音效程序：cogvx serve --sound-from 可指定。",
    ),
    "dropped": ("Load the settings of an mp4", "从 mp4 载入设置"),
    "dropped.help": ("Drop a video that was made here.", "拖入此处生成的视频。"),
    "generate": ("Generate", "生成"),
    "stop": ("Stop", "停止"),
    # --- what is told
    "results": ("Videos", "视频"),
    "nothing yet": ("Videos appear here while they are made.", "生成过程和结果会显示在这里。"),
    "history": ("History", "历史记录"),
    "history.empty": ("What you make is listed here.", "您生成的视频会列在这里。"),
    "history.kept": ("Videos are kept for {hours} hours.", "视频保留 {hours} 小时。"),
    "refresh": ("Refresh", "刷新"),
    "queued": ("Waits; before it: {position}", "排队中，前面还有 {position} 个任务"),
    "queued.first": ("Is next", "即将开始"),
    "queued.no worker": ("Waits for a worker; none is there now", "等待工作进程；目前没有"),
    "stage.starting": ("Begins", "准备中"),
    "stage.compiling": ("Compiles for this size, which takes a while once", "首次为该尺寸编译，请稍候"),
    "stage.sampling": ("Step {step} of {steps}", "第 {step} / {steps} 步"),
    "stage.decoding": ("Decodes", "解码中"),
    "stage.finishing": ("Decodes, enlarges, interpolates", "解码与后期处理中"),
    "stage.waiting: the disk is full": ("Waits: the disk is full", "等待：磁盘已满"),
    "stage.waiting: the bucket cannot be reached": ("Waits: the bucket cannot be reached", "等待：无法访问存储桶"),
    "left": ("about {left} left", "剩余约 {left}"),
    "completed": ("Made in {seconds}", "用时 {seconds}"),
    "cancelled": ("Stopped", "已停止"),
    "failed": ("Failed: {message}", "失败：{message}"),
    "gone": ("This video is not kept any more.", "该视频已不再保留。"),
    "facts": ("{size}, {frames} frames, {seconds} s, seed {seed}", "{size}，{frames} 帧，{seconds} 秒，种子 {seed}"),
    "seconds": ("{n} s", "{n} 秒"),
    "minutes": ("{n} min", "{n} 分钟"),
    # --- what can be done with a video
    "do.cancel": ("Stop", "停止"),
    "do.reuse": ("Reuse settings", "使用其设置"),
    "do.remix": ("Remix", "改编"),
    "do.remix.help": ("Redraws it by the prompt in the form", "按表单中的提示词改绘"),
    "do.replay": ("Replay", "重做"),
    "do.replay.help": ("Makes it again, with the same seed", "以相同种子重新生成"),
    "do.delete": ("Delete", "删除"),
    "started": ("{count} in the queue.", "已加入队列：{count}。"),
    "loaded": ("The settings are in the form.", "设置已填入表单。"),
    "loaded.none": ("{message}", "无法读取该视频的设置：{message}"),
    "loaded.not": ("Not taken: {names}.", "未采用：{names}。"),
    "loaded.model": ("It was made by {theirs}; here is {ours}.", "它由 {theirs} 生成，这里是 {ours}。"),
    "loaded.files": ("Give its {names} again; a video does not hold them.", "请重新提供 {names}，视频中不含它们。"),
    "refused.no prompt": ("Say in the prompt what the video shows.", "请填写提示词。"),
    "refused.weights": (
        "Weights are numbers such as 0.8, 0.5; got {given}.",
        "权重应为数字，如 0.8, 0.5；得到 {given}。",
    ),
    "refused.gone": ("There is no such video any more.", "该视频已不存在。"),
    "refused.bug": ("The server made a mistake; its log says which.", "服务器出错，详见其日志。"),
}


def say(key: str, language: str = "en", **values: Any) -> str:
    """The words of a key. Raises: KeyError for a key that is not in the table."""
    if key not in WORDS:
        raise KeyError(f"there are no words for {key!r}{perhaps([key], WORDS)}")
    return WORDS[key][language == "zh"].format(**values)


def language_of(accepted: str | None) -> str:
    """The language of a browser, by its header Accept-Language: the first that is here, else English."""
    for one in (accepted or "").lower().split(","):
        name = one.partition(";")[0].strip().partition("-")[0]
        if name in LANGUAGES:
            return name
    return "en"


def duration(seconds: float, language: str) -> str:
    """Some seconds in words."""
    if seconds >= 90:
        return say("minutes", language, n=round(seconds / 60))
    return say("seconds", language, n=max(1, round(seconds)))
