"""What a user's server leaves out while it is imported, and that it is there again for whoever asks later."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from jupyterlab import commands

from cellwork_jupyter import singleuser

IMPORTED = """
import json, sys
from cellwork_jupyter import singleuser
with singleuser.without():
    import httpx, jsonschema, jupyter_events, jupyterhub.singleuser
left_out = [name for name in ("lark", "arrow", "click", "mako", "alembic") if name in sys.modules]
assert jsonschema.validate({"a": "https://example.org"}, {"properties": {"a": {"format": "uri"}}}) is None
import alembic.command, rfc3987_syntax
from alembic.script import ScriptDirectory
print(json.dumps([left_out, callable(alembic.command.stamp), ScriptDirectory.__name__, rfc3987_syntax.is_valid_syntax("iri", "http://a")]))
"""


def test_what_no_server_needs_is_not_imported_and_is_there_afterwards() -> None:
    told = subprocess.run([sys.executable, "-P", "-c", IMPORTED], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == [[], True, "ScriptDirectory", True]


def test_the_question_to_yarn_that_is_left_out_is_one_lab_asks() -> None:
    assert set(commands._yarn_config(logging.getLogger())) == set(singleuser._no_builds(logging.getLogger()))
