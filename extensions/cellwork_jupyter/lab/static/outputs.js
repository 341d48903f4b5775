// A page of Lab that opens finds the outputs of cells that ran while it was away, and follows those that still run.
// The server keeps them (cellwork_jupyter.server.kept). This file is what the browser loads: a container of Module Federation, by
// which Lab hands out its own packages, written by hand so that nothing needs to be built.
(() => {
  const EVERY_MS = 1000;
  let shared;

  const load = async name => {
    const [version] = Object.values(shared[name]);
    return (await version.get())();
  };

  const pause = ms => new Promise(done => setTimeout(done, ms));

  const show = (cell, one) => {
    cell.model.trusted = true; // it is what the user's own kernel said to this very code
    cell.model.outputs.fromJSON(one.outputs.map(({ display_id, ...output }) => output));
    cell.model.executionCount = one.count;
    cell.model.executionState = one.ended ? 'idle' : 'running';
    cell.setPrompt(one.ended ? `${one.count ?? ''}` : '*');
  };

  // Kept outputs are the cell's if it ran after the notebook was saved, and its code is still the same.
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
      const mine = kept.filter(one => (first.size ? first.get(one.cell) === one.id : newer(one, saved)));
      if (!first.size) mine.forEach(one => first.set(one.cell, one.id));
      for (const one of mine.filter(one => one.begun)) {
        const cell = panel.content.widgets.find(found => found.model.id === one.cell);
        if (cell?.model.type !== 'code' || cell.model.sharedModel.source !== one.code) continue;
        if (shown.get(one.id) !== one.changes) show(cell, one);
        shown.set(one.id, one.changes);
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
        const answer = await ServerConnection.makeRequest(`${settings.baseUrl}cellwork/outputs/${kernel}`, {}, settings);
        return answer.ok ? answer.json() : [];
      };
      tracker.widgetAdded.connect((_, panel) => {
        follow(panel, ask).catch(error => console.warn('cellwork: kept outputs are not shown', error));
      });
    }
  });

  (window._JUPYTERLAB ??= {}).cellwork = {
    init: scope => { shared = scope; },
    get: async () => {
      const { INotebookTracker } = await load('@jupyterlab/notebook');
      const { ServerConnection } = await load('@jupyterlab/services');
      return () => ({ __esModule: true, default: [plugin(INotebookTracker, ServerConnection)] });
    }
  };
})();
