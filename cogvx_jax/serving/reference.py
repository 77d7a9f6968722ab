"""`/docs`: the calls and their fields as a page of plain HTML, which fetches nothing from anywhere."""

import html
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#8882;padding:.1em .3em;border-radius:.2em}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .6rem .2rem 0;border-bottom:1px solid #8884}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#eee}a{color:#9cf}}"
)


def page(described: dict[str, Any]) -> str:
    """The page of what `FastAPI.openapi` gives."""
    title = html.escape(f"{described['info']['title']} {described['info']['version']}")
    calls = "".join(
        _call(method.upper(), path, call)
        for path, methods in described["paths"].items()
        for method, call in methods.items()
    )
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    intro = 'Bodies are JSON or forms. <a href="openapi.json">openapi.json</a> describes all of it for programs.'
    return f'<!doctype html><html lang="en">{head}<style>{STYLE}</style><h1>{title}</h1><p>{intro}</p>{calls}</html>'


def _call(method: str, path: str, call: dict[str, Any]) -> str:
    said = html.escape(call.get("description", "").partition("\n")[0])
    body = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    rows = [_row(one["name"], one.get("schema", {}), one["in"]) for one in call.get("parameters", ())]
    needed = body.get("required", ())
    rows += [
        _row(name, schema, "needed" if name in needed else "") for name, schema in body.get("properties", {}).items()
    ]
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    return f"<h2><code>{method} {html.escape(path)}</code></h2><p>{said}</p>{table}"


def _row(name: str, schema: dict[str, Any], where: str) -> str:
    return f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(_words(schema))}<td>{html.escape(where)}</tr>"


def _words(schema: dict[str, Any]) -> str:
    """A schema in a few words; null, which is as if nothing were given, is left out."""
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return " or ".join(filter(None, map(_kind, kinds)))


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(
            str(one).lower() if isinstance(one, bool) else str(one) for one in schema["enum"] if one is not None
        )
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    bounds = (
        ""
        if low is None and high is None
        else f" {'' if low is None else f'{low:g}'} … {'' if high is None else f'{high:g}'}"
    )
    if schema.get("type") == "array":
        return f"list of {_words(schema.get('items', {}))}"
    return f"{schema.get('description') or schema.get('type', '')}{bounds}"
