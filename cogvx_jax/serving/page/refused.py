"""What the server refuses, and what fails, in the language of the page: one table by the code of the error.

The APIs speak English, and so do the rules that they check, of which there are hundreds. In Chinese the page says which
kind of mistake it is and of which field, and lets the English sentence follow, which has the numbers.
"""

from cogvx_jax.serving.page.words import WORDS, say

CHINESE = {  # code of `refusals.KINDS` or of a job -> words; {field} is empty, or names a field
    "missing_required_parameter": "缺少必填项{field}",
    "unknown_parameter": "无法识别{field}",
    "invalid_value": "设置不可用{field}",
    "invalid_request": "请求有误{field}",
    "exclusive_parameters": "有些设置不能同时使用{field}",
    "prompt_too_long": "提示词过长",
    "invalid_api_key": "用户名或密钥有误",
    "no_api_key": "请先登录",
    "token_expired": "登录已过期，请重新登录",
    "forbidden": "不允许从该页面访问",
    "model_not_found": "此处没有该模型",
    "not_found": "该视频已不存在",
    "method_not_allowed": "不支持该操作",
    "request_timeout": "请求超时，请重试",
    "request_repeated": "该请求编号已被使用",
    "not_ready": "视频尚未完成",
    "body_too_large": "文件过大{field}",
    "unsupported_media_type": "不支持该文件类型{field}",
    "range_not_satisfiable": "请求的范围超出文件",
    "queue_full": "任务过多，请稍后再试",
    "server_error": "服务器出错，详见其日志",
    "not_implemented": "暂不支持该功能",
    "unavailable": "服务暂时不可用，请稍后再试",
    "disk_full": "服务器磁盘已满，请稍后再试",
    # --- of jobs that failed
    "generation_failed": "无法生成该视频",
    "worker_lost": "多个工作进程在生成该视频时退出，其尺寸可能超出它们的内存",
}
ALONE = ("not_found", "server_error", "no_api_key", "token_expired", "worker_lost")  # to which English adds nothing


def refused_words(code: str | None, message: str, language: str, param: str | None = None) -> str:
    """An error in words.

    Args:
      code: of the error; one that is not known here has its message alone.
      message: the English sentence.
      param: the field at fault.
    """
    if language != "zh" or code not in CHINESE:
        return message
    said = CHINESE[code].format(field="" if param is None else f"（{field_words(param, language)}）")
    return f"{said}。" if code in ALONE else f"{said}：{message}"


def field_words(param: str, language: str) -> str:
    """A field's name as the form has it."""
    return say(param, language) if param in WORDS else param
