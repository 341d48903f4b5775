"""`%job` and `%runs`: the form of a job and the list of runs in a notebook. Thin shells of `cellwork.ui.jobs` and the client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from cellwork import errors, project

if TYPE_CHECKING:
    from cellwork.ui.jobs import JobForm, RunList


@magics_class
class JobMagics(Magics):
    @magic_arguments()
    @argument(
        "what", help="a notebook, for the form that makes a job of it; or a job (name or project/name), for its runs"
    )
    @argument("--run", action="store_true", help="run the job now")
    @argument("--pause", action="store_true", help="fire the job no more")
    @argument("--resume", action="store_true", help="fire the job again")
    @line_magic
    def job(self, line: str) -> JobForm | RunList:
        """Make a job of a notebook in a form, or look at a job's runs.

        Example: %job report.ipynb
        """
        asked = parse_argstring(self.job, line)
        try:
            return self._form(asked.what) if asked.what.endswith(".ipynb") else self._of(asked)
        except errors.CellworkError as error:
            raise UsageError(str(error)) from None

    def _form(self, path: str) -> JobForm:
        from cellwork.ui.jobs import JobForm

        if not Path(path).is_file():
            raise errors.NotFound("notebook", path, "is not there", "write its path from this notebook's folder")
        return JobForm(path)

    def _of(self, asked: Any) -> RunList:
        from cellwork.client import connect
        from cellwork.ui.jobs import RunList
        from cellwork.wire.jobs import RunRequest

        jobs, name = connect().jobs, full_name(asked.what)
        jobs.get(name)
        if asked.pause or asked.resume:
            jobs.pause(name, paused=asked.pause)
        if asked.run:
            jobs.start(RunRequest(job=name))
        return RunList(name)

    @magic_arguments()
    @argument("job", nargs="?", default="", help="only runs of this job (name or project/name)")
    @argument("--state", default="", help="queued, running, succeeded, failed or stopped")
    @argument("--most", type=int, default=20, help="how many (default: 20)")
    @line_magic
    def runs(self, line: str) -> RunList:
        """Show the newest runs, stop one, run one again, compare two.

        Example: %runs flights/score --state failed
        """
        from cellwork.ui.jobs import RunList

        asked = parse_argstring(self.runs, line)
        try:
            return RunList(full_name(asked.job) if asked.job else "", state=asked.state, most=asked.most)
        except errors.CellworkError as error:
            raise UsageError(str(error)) from None


def full_name(name: str) -> str:
    """Return `project/name`; a short name belongs to the project of this folder."""
    return name if "/" in name else project.find().full_name(name)
