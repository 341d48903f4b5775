// A page of Lab that opens finds the outputs of cells that ran while it was away, and follows those that still run; and it hears how
// runs ended. The server keeps the outputs (cellwork_jupyter.server.kept) and passes the news on (cellwork_jupyter.server.runs). What
// this page itself asked for is Lab's to show, and never touched: two that write into one cell would wipe or repeat each other's words.
// This file is what the browser loads: a container of Module Federation, by which Lab hands out its own packages, written by hand so
// that nothing needs to be built.
(() => {
  const EVERY_MS = 1000, TRIES = 60, AGAIN_MS = 5000, NO_NEWS = 204;
  let shared;

  const load = async name => {
    const [version] = Object.values(shared[name]);
    return (await version.get())();
  };

  const pause = ms => new Promise(done => setTimeout(done, ms));

  // What came to `outputs` after `before`; nothing is known where something of it was replaced.
  const added = (before, outputs) => {
    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other), last = before.length - 1;
    const [was, is] = [before[last], outputs[last]], rest = outputs.slice(last + 1);
    if (!is || !same(before.slice(0, last), outputs.slice(0, last))) return undefined;
    if (same(was, is)) return rest;
    return is.output_type === 'stream' && is.text.startsWith(was.text) && is.name === was.name && [{ ...is, text: is.text.slice(was.text.length) }, ...rest];
  };

  // Show the outputs of `one` in a cell that shows `before` of it; what is there stays, so that no widget is made anew under the pointer.
  const show = (cell, one, before) => {
    const outputs = one.outputs.map(({ display_id, ...output }) => output), model = cell.model.outputs;
    const more = before?.length === model.length && added(before, outputs);
    cell.model.trusted = true; // it is what the user's own kernel said to this very code
    if (more) more.forEach(output => model.add(output));
    else model.fromJSON(outputs);
    cell.model.executionCount = one.count;
    cell.model.executionState = one.ended ? 'idle' : 'running';
    cell.setPrompt(one.ended ? `${one.count ?? ''}` : '*');
    return outputs;
  };

  // Kept outputs are the cell's if another page asked for them after the notebook was saved, and its code is still the same.
  const newer = (one, saved) => !one.ended || Date.parse(one.ended) > saved;

  const follow = async (panel, ask) => {
    await panel.context.ready;
    await panel.sessionContext.ready;
    const saved = Date.parse(panel.context.contentsModel?.last_modified ?? 0);
    const first = new Map(), shown = new Map();
    let quiet = 0;
    for (;;) {
      const kernel = panel.sessionContext.session?.kernel;
      const kept = kernel && !panel.isDisposed ? await ask(kernel.id) : [];
      const others = kept.filter(one => one.page !== kernel.clientId);
      const mine = others.filter(one => (first.size ? first.get(one.cell) === one.id : newer(one, saved)));
      if (!first.size) mine.forEach(one => first.set(one.cell, one.id));
      for (const one of mine.filter(one => one.begun)) {
        const cell = panel.content.widgets.find(found => found.model.id === one.cell);
        if (cell?.model.type !== 'code' || cell.model.sharedModel.source !== one.code) continue;
        if (cell.outputArea.future) continue; // this page has asked for it too, while it heard of what was before
        const { changes, outputs } = shown.get(one.id) ?? {};
        if (changes !== one.changes) shown.set(one.id, { changes: one.changes, outputs: show(cell, one, outputs) });
      }
      quiet = mine.some(one => one.begun && !one.ended) ? 0 : quiet + 1;
      if (quiet > 1 || !mine.length) return; // one look later the next in the queue would have begun
      await pause(EVERY_MS);
    }
  };

  const plugin = (INotebookTracker, ServerConnection) => ({
    id: 'cellwork:outputs',
    description: 'Finds the outputs of cells that ran while no page was open.',
    autoStart: true,
    requires: [INotebookTracker],
    activate: (app, tracker) => {
      const settings = app.serviceManager.serverSettings;
      const ask = async kernel => {
        for (let tries = 0; ; tries++) {
          try {
            const answer = await ServerConnection.makeRequest(`${settings.baseUrl}cellwork/outputs/${kernel}`, {}, settings);
            if (answer.ok) return answer.json();
            if (answer.status < 500 || tries === TRIES) return [];
          } catch (error) {
            if (tries === TRIES) throw error; // the server is away, and not for a moment
          }
          await pause(EVERY_MS);
        }
      };
      tracker.widgetAdded.connect((_, panel) => {
        follow(panel, ask).catch(error => console.warn('cellwork: kept outputs are not shown', error));
      });
    }
  });

  const WORDS = { 'run.succeeded': ['succeeded', 'success'], 'run.failed': ['failed', 'error'], 'run.stopped': ['was stopped', 'warning'] };

  const sentence = (event, word) => {
    const { job, notebook, cell, cells, error } = event.data;
    const where = error && cell ? ` in cell ${cell} of ${cells}` : '';
    return `${job || notebook} ${word}${where}${error ? `: ${error}` : ''}`;
  };

  // Hand each server-sent event of a stream to `tell`, as its id and its data.
  const readEvents = async (body, tell) => {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ''; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (text + value).split('\n\n');
      text = frames.pop();
      for (const frame of frames) {
        const field = name => frame.split('\n').find(line => line.startsWith(`${name}: `))?.slice(name.length + 2);
        if (field('data')) tell(field('id'), JSON.parse(field('data')));
      }
    }
  };

  const newsPlugin = (Notification, ServerConnection) => ({
    id: 'cellwork:news',
    description: 'Tells how runs of notebooks ended, and opens their pages.',
    autoStart: true,
    activate: app => {
      const settings = app.serviceManager.serverSettings;
      const open = async run => {
        const answer = await ServerConnection.makeRequest(`${settings.baseUrl}cellwork/runs/${run}/open`, { method: 'POST' }, settings);
        const said = await answer.json();
        if (answer.ok) await app.commands.execute('docmanager:open', { path: said.path });
        else Notification.emit(said.message ?? `the run's page can't be opened (${answer.status})`, 'error', { autoClose: false });
      };
      const place = `cellwork:news:${settings.baseUrl}`;
      const note = id => localStorage.setItem(place, id);
      const tell = (id, event) => {
        const [word, kind] = WORDS[event.name] ?? [];
        const actions = [{ label: 'Open', callback: () => open(event.subject).catch(console.warn) }];
        if (word) Notification.emit(sentence(event, word), kind, { autoClose: kind === 'success' ? 10000 : false, actions });
        note(id);
      };
      // Lab's own request, not an EventSource: behind the hub it must carry a header that only Lab can set.
      const ask = () => {
        const heard = localStorage.getItem(place);
        return ServerConnection.makeRequest(`${settings.baseUrl}cellwork/news${heard ? `?after=${heard}` : ''}`, {}, settings);
      };
      const listen = async () => {
        for (;;) {
          try {
            const answer = await ask();
            if (answer.status === NO_NEWS) return;
            if (answer.ok) await readEvents(answer.body, tell);
          } catch (error) {
            console.debug('cellwork: news are asked for again', error); // the server or the service is away for a moment
          }
          await pause(AGAIN_MS);
        }
      };
      app.restored.then(listen); // not before: what is told while Lab starts reaches nobody who would show it
    }
  });

  (window._JUPYTERLAB ??= {}).cellwork = {
    init: scope => { shared = scope; },
    get: async () => {
      const { INotebookTracker } = await load('@jupyterlab/notebook');
      const { ServerConnection } = await load('@jupyterlab/services');
      const { Notification } = await load('@jupyterlab/apputils');
      const plugins = [plugin(INotebookTracker, ServerConnection), newsPlugin(Notification, ServerConnection)];
      return () => ({ __esModule: true, default: plugins });
    }
  };
})();
