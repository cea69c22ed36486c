"""Writes the tables of settings and metrics into what they are shipped with: run by `make docs`.

packaging/tcpwatchd.conf is made whole. Of the man pages and the completion only what stands between two
comments, `made by "make docs": NAME` and `end of NAME`, is replaced. --check writes nothing, names what is
not up to date, and exits with status 1 if anything is not.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from tcpwatchd.config.flags import make_parser
from tcpwatchd.config.settings import RULE_HELP, RULES_SECTION, SECTIONS, SETTINGS
from tcpwatchd.output.metrics import METRICS, PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.config.settings import Setting

PACKAGING = Path(__file__).parent
WIDTH = 79
HEADER = """\
Settings of tcpwatchd. Each that is commented out here has its default. Change
them here or, better, in drop-ins: files of any name that ends with .conf in
/etc/tcpwatchd/tcpwatchd.conf.d, which are read after this one.

See tcpwatchd.conf(5) for what there is, and for the grammar of rules. "tcpwatchd
--check-config" says what is wrong, "tcpwatchd --show-config" what is in force,
and "systemctl reload tcpwatchd" has the service read it again."""
RULES_HEADER = """\
Rules: the first that matches a connection decides, in the order of the files.
What none of them matches is reported."""
EXAMPLES_HEADER = "Examples; tcpwatchd.conf(5) says where there are more."
EXAMPLES = (
    "Ignore=net 127.0.0.0/8 or host ::1",
    "Ignore=ingress and dst port 8080 and src host 192.0.2.10",
    "Report=egress and dst port 443 and unit apt-daily*.service",
    "Warning=egress and not dst net 10.0.0.0/8",
)
NEEDS_RESTART = "A reload does not change it: it takes a restart."
MARK = re.compile(
    r'^(?P<begin>[ \t]*\S+ made by "make docs": (?P<name>[a-z ]+))$\n'
    r".*?^(?P<end>[ \t]*\S+ end of (?P=name))$",
    re.MULTILINE | re.DOTALL,
)
"""A part of a file that is made, between comments of any kind."""
WORD = re.compile(r"(?P<before>\(?)(?P<word>.+?)(?P<after>[.,;:)]*)")
MACROS = {
    "Pa": r"/\S+",
    "Fl": r"--[a-z-]+",
    "Xr": r"[a-z.]+\([0-9]\)",
    "Li": r"[A-Z]+_[A-Z_]+|[a-z-]+\.service|[A-Z]\w*=\S*",
    "Ql": r'"[^"]+"',
}
"""Of mdoc(7), for words that look so."""


def make_files() -> dict[Path, str]:
    """All files that are made, wholly or in part, as they should be."""
    parts = {
        "synopsis": format_synopsis,
        "options": format_options,
        "words": format_completion,
        "metrics": format_table_of_metrics,
        **{f"section {name.lower()}": section_formatter(name) for name in SECTIONS},
    }
    made = {PACKAGING / "tcpwatchd.conf": format_configuration()}
    for name in ("tcpwatchd.8", "tcpwatchd.conf.5", "completions/tcpwatchd"):
        path = PACKAGING / name
        made[path] = fill(path.read_text(), parts)
    return made


def fill(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """With the marked parts of a file made anew."""

    def replace(found: re.Match[str]) -> str:
        lead = re.match(r"\s*", found["begin"])
        inner = textwrap.indent(parts[found["name"]](), lead[0] if lead else "")
        return f"{found['begin']}\n{inner}\n{found['end']}"

    return MARK.sub(replace, text)


def describe(setting: Setting, restart: bool = True) -> str:
    """In sentences."""
    sentences = [start_sentence(setting.help), setting.details]
    if restart and setting.needs_restart:
        sentences.append(NEEDS_RESTART)
    return " ".join(sentence for sentence in sentences if sentence)


def start_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def format_configuration() -> str:
    """The file that is shipped: it says nothing but what holds anyway."""
    paragraphs = [comment(HEADER)]
    for section in SECTIONS:
        paragraphs.append(f"[{section}]")
        for setting in SETTINGS:
            if setting.section == section:
                paragraphs.append(f"{comment(describe(setting))}\n#{setting.key}={setting.default or ''}")
        if section == RULES_SECTION:
            keys = "\n".join(comment(f"{key + '=':10}{text}", 10) for key, text in RULE_HELP.items())
            rules = "\n".join(f"#{rule}" for rule in EXAMPLES)
            paragraphs += [f"{comment(RULES_HEADER)}\n#\n{keys}", f"{comment(EXAMPLES_HEADER)}\n{rules}"]
    return "\n\n".join(paragraphs) + "\n"


def comment(text: str, indent: int = 0) -> str:
    """`indent` is that of all lines of a paragraph but its first."""
    wrapper = textwrap.TextWrapper(WIDTH - 2, subsequent_indent=" " * indent, break_on_hyphens=False)
    paragraphs = ["\n".join(wrapper.wrap(paragraph)) for paragraph in text.split("\n\n")]
    return "\n".join(f"# {line}".rstrip() for line in "\n\n".join(paragraphs).split("\n"))


def format_synopsis() -> str:
    """The flags of settings, as tcpwatchd.8 lists them."""
    return "\n".join(f".Op {format_flag(setting, 'no-')}" for setting in SETTINGS)


def format_options() -> str:
    """The same, with what they mean."""
    lines = []
    for setting in SETTINGS:
        lines += [f".It {format_flag(setting)}", format_text(describe(setting, restart=False))]
        lines += format_default(setting)
    return "\n".join(lines)


def format_flag(setting: Setting, no: str = "") -> str:
    """`no`: how the flag is shown that takes back a switch, if not as one of its own."""
    name = setting.flag[1:]
    if setting.is_switch:
        return f"Fl -[{no}]{name[1:]}" if no else f"Fl {name} , Fl -no{name}"
    return f"Fl {name} {format_form(setting)}"


def format_form(setting: Setting) -> str:
    """Words that stand for themselves, and names for others."""
    words, macro = [], ""
    for word in setting.form.split("|"):
        before, macro = macro, "Cm" if word.islower() else "Ar"
        words.append(word if macro == before else f"{macro} {word}")
    return " | ".join(words)


def format_default(setting: Setting) -> list[str]:
    return [] if setting.default is None else ["The default is", f".Cm {setting.default} ."]


def section_formatter(section: str) -> Callable[[], str]:
    """What makes the settings of a section, as tcpwatchd.conf.5 lists them."""

    def format_section() -> str:
        lines = []
        for setting in SETTINGS:
            if setting.section == section:
                lines.append(f".It Cm {setting.key}= Ns {format_form(setting)}")
                lines += [format_text(describe(setting)), *format_default(setting)]
        if section == RULES_SECTION:
            for key, text in RULE_HELP.items():
                lines += [f".It Cm {key}= Ns Ar EXPRESSION", format_text(text)]
        return "\n".join(lines)

    return format_section


def format_table_of_metrics() -> str:
    """As tcpwatchd.8 lists them."""
    lines = []
    for metric in METRICS:
        lines.append(f".It Li {PREFIX}{metric.name}")
        lines.append(f"A {metric.kind}" + ("." if not metric.label else ", by"))
        if metric.label:
            values = [f".Ql {value} ," for value in metric.values]
            lines += (
                [f".Li {metric.label} :", *values[:-1], f"{values[-1][:-1]}."]
                if values
                else [f".Li {metric.label} ."]
            )
        lines.append(format_text(metric.help))
    return "\n".join(lines)


def format_text(text: str) -> str:
    """As mdoc(7): each sentence begins a line, and what has a form of its own has a line of its own."""
    lines: list[str] = []
    words: list[str] = []
    for item in re.findall(r'\(?"[^"]+"\S*|\S+', text):
        macro = find_macro(item)
        if macro or not words:
            lines += wrap(words)
            words = []
        if macro:
            lines.append(macro)
        else:
            words.append(item)
            if item.endswith("."):
                lines += wrap(words)
                words = []
    return "\n".join(lines + wrap(words))


def wrap(words: Iterable[str]) -> list[str]:
    lines = textwrap.wrap(" ".join(words), WIDTH, break_on_hyphens=False)
    return [f"\\&{line}" if line.startswith((".", "'")) else line.replace("\\", "\\e") for line in lines]


def find_macro(item: str) -> str | None:
    """The line of a word that looks like what has a form of its own."""
    parts = WORD.fullmatch(item)
    for macro, form in MACROS.items():
        if parts and re.fullmatch(form, parts["word"]):
            word = parts["word"].strip('"').replace("\\", "\\e")
            word = re.sub(r"^--", "-", word) if macro == "Fl" else word
            word = re.sub(r"\((.)\)$", r" \1", word) if macro == "Xr" else word
            return " ".join([f".{macro}", *parts["before"], word, *parts["after"]])
    return None


def format_completion() -> str:
    """The flags, and what can follow each, as bash has them."""
    actions = [action for action in make_parser()._actions if action.option_strings]
    flags = [flag for action in actions for flag in action.option_strings if flag.startswith("--")]
    files = [flag for action in actions if action.metavar == "FILE" for flag in action.option_strings]
    lines = ["flags='", *textwrap.wrap(" ".join(flags), WIDTH - 4, break_on_hyphens=False), "'"]
    lines += ["case $flag in", f"    {' | '.join(files)}) files=yes ;;"]
    free: list[str] = []
    for action in actions:
        words = [word for word in str(action.metavar or "").split("|") if word.islower()]
        if words:
            lines.append(f"    {action.option_strings[0]}) values='{' '.join(words)}' ;;")
        elif action.metavar and action.metavar != "FILE":
            free += action.option_strings
    lines += [f"    {' | '.join(free)}) free=yes ;;", "esac"]
    return "\n".join(lines)


def main() -> int:
    check = "--check" in sys.argv[1:]
    made = make_files()
    stale = [path for path in made if not path.exists() or path.read_text() != made[path]]
    for path in stale:
        print(path.relative_to(PACKAGING.parent))
        if not check:
            path.write_text(made[path])
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
