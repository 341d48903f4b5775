import sys

from cellwork_hub.context import Context
from cellwork_hub.edge import listen, serve
from cellwork_hub.inference import workers
from cellwork_hub.inference.app import build

if __name__ == "__main__":
    context = Context.load()
    wanted, drain = workers.count(context.settings.inference_workers), context.settings.drain_seconds
    port = context.ports["inference"]
    if sys.argv[1:2] == ["--worker"]:
        workers.end_with_parent()
        place = workers.Place.of(sys.argv[2:])
        app = build(context, worker=place.number)
        serve(app, "", 0, listening=place.listening, drain_seconds=drain, proxied=False, started=place.say)
    elif wanted > 1:
        workers.run(
            wanted, workers.python("cellwork_hub.inference"), lambda: listen("127.0.0.1", port), drain_seconds=drain
        )
    else:
        serve(build(context), "127.0.0.1", port, drain_seconds=drain, proxied=False)
