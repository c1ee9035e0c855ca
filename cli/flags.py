"""Option and command names of other tools: an unknown name is answered with latentc's name for it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

COMMANDS = {
    **dict.fromkeys(("draw", "generate", "txt2img", "t2i", "sample", "infer", "image", "predict"), "run"),
    **dict.fromkeys(("compile", "optimize", "quantize"), "build"),
    **dict.fromkeys(("convert", "import", "save"), "export"),
    **dict.fromkeys(("info", "ls", "list"), "inspect"),
    **dict.fromkeys(("check", "validate"), "verify"),
    **dict.fromkeys(("benchmark", "measure"), "bench"),
    **dict.fromkeys(("metadata", "pnginfo", "exif"), "show"),
}
FLAGS = {
    "negative_prompt": "--negative",
    "width": "--size",
    "height": "--size",
    "did you mean 'width' and 'height'?": "--size",
}
"""Options whose names differ from the request's field."""
OTHERS = {
    **dict.fromkeys(("device", "runtime", "precision", "dtype", "backend", "provider"), "--profile"),
    **dict.fromkeys(("out", "o", "outdir", "outfile", "outputdir", "outputpath", "saveto", "file"), "--output"),
    **dict.fromkeys(("promptfile", "promptsfile", "fromfile"), "--prompts"),
    **dict.fromkeys(("force", "f", "y", "replace", "clobber"), "--overwrite"),
}


class Commands(TyperGroup):
    """The commands. For an unknown command or option, the error suggests the one that is probably meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Like typer's, with suggestions for names that other tools use."""
        if args and args[0] in COMMANDS and COMMANDS[args[0]] in self.commands and args[0] not in self.commands:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {COMMANDS[args[0]]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Like typer's, with suggestions for names that other tools use."""
        try:
            return super().invoke(ctx)
        except Exception as exc:
            name, near = getattr(exc, "option_name", None), getattr(exc, "possibilities", None)
            command = getattr(getattr(exc, "ctx", None), "command", None)
            if isinstance(name, str) and command is not None and hasattr(exc, "possibilities"):
                flags = {flag for one in command.params for flag in one.opts}
                exc.possibilities = [flag for flag in _meant(name) if flag in flags] or near  # pyright: ignore
            raise


def _meant(name: str) -> list[str]:
    from ..core.record import other_name
    from ..core.request import Request

    plain = name.lstrip("-")
    field = plain.replace("-", "_") if plain.replace("-", "_") in Request.model_fields else other_name(plain, Request)
    flags = [] if field is None else [FLAGS.get(field, f"--{field.replace('_', '-')}")]
    return [*flags, *([OTHERS[key]] if (key := plain.replace("-", "").replace("_", "").lower()) in OTHERS else [])]
