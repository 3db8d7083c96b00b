"""The command line: `zsaq quantize | quantize-files | synthesize | compare | methods | inspect | fit | evaluate |
export | verify | bench | serve | chat | report | push | doctor`.

Thin over the library. It stands beside the package and not in it: `import zsaq` registers the format with
transformers, which takes seconds that `zsaq --help` shall not take, and fails where torch is broken, which
`zsaq doctor` shall tell.
"""

import io
import sys
import traceback

import typer

from zsaq_cli.answer import BUG
from zsaq_cli.deploying import bench, export, push, report, verify
from zsaq_cli.health import doctor
from zsaq_cli.knowing import fit, inspect
from zsaq_cli.listing import methods
from zsaq_cli.making import OPEN, compare, quantize
from zsaq_cli.scoring import evaluate
from zsaq_cli.serving import chat, serve
from zsaq_cli.streaming import quantize_files
from zsaq_cli.writing import synthesize

HELP = """Low-bit quantization of pretrained Hugging Face models without any data.

Results are on stdout, progress and errors on stderr; with --json stdout holds one JSON object and nothing else.

Exit codes:

\b
0    done, and it holds
1    what was asked for does not hold: verify disagrees, a score misses its bound
2    bad input, or a file that is damaged: the message says what to do
3    a package or an extra is missing: the message says which
4    the Hub could not be reached or broke off: the same command may be repeated
70   a mistake of zsaq itself: please report the traceback
130  interrupted (143 by SIGTERM): zsaq quantize goes on with --resume

Example:

\b
zsaq quantize textattack/bert-base-uncased-SST-2 --bits w4a8 --output_dir sst2-w4a8
zsaq verify sst2-w4a8
zsaq report sst2-w4a8
"""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
COMMANDS = (
    *(quantize, quantize_files, synthesize, compare, methods, inspect, fit),
    *(evaluate, export, verify, bench, serve, chat, report, push, doctor),
)
for command in COMMANDS:
    settings = OPEN if command in (quantize, quantize_files, compare) else {}
    app.command(no_args_is_help=command not in (methods, doctor), context_settings=settings)(command)


def main() -> None:
    """The console script. A name that the terminal cannot show is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="zsaq")
    except Exception as error:
        traceback.print_exception(error)
        raise SystemExit(BUG) from error
