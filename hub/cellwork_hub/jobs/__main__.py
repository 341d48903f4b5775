from cellwork_hub.context import Context
from cellwork_hub.edge import serve
from cellwork_hub.gate import Gate
from cellwork_hub.jobs.app import build
from cellwork_hub.login import Login

if __name__ == "__main__":
    context = Context.load()
    serve(Gate(build(context), Login.of(context, "jobs")), "127.0.0.1", context.ports["jobs"])
