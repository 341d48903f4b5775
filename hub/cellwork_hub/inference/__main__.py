import sys

from cellwork_hub.context import Context
from cellwork_hub.edge import serve
from cellwork_hub.inference import workers
from cellwork_hub.inference.app import build

if __name__ == "__main__":
    context = Context.load()
    wanted = workers.count(context.settings.inference_workers)
    if sys.argv[1:2] == ["--worker"]:
        workers.end_with_parent()
        app = build(context, worker=int(sys.argv[2]))
        serve(app, "127.0.0.1", context.ports["inference"], shared=True)
    elif wanted > 1:
        workers.run(wanted)
    else:
        serve(build(context), "127.0.0.1", context.ports["inference"])
