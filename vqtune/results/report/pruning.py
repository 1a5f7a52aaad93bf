"""What pruning did: how long trials lived, and the epochs it saved."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as Canvas

from vqtune.results.report.looks import COLOURS, Figure, Missing, by_state, canvas, epoch_axis, label
from vqtune.results.study import Study, Trial
from vqtune.results.words import percent, share_saved


def survival(study: Study) -> Figure | Missing:
    """How many trials reached each epoch, by how they ended later."""
    title = "Rung survival"
    trials = [trial for trial in study.trials if trial.spent]
    if not trials:
        return Missing("survival", title, "no epoch has been trained yet")
    rungs = sorted({trial.end.rung for trial in trials if trial.end and trial.end.rung})
    caption = "How many trials went on after each epoch, coloured by how they ended." + (
        f" Dotted: the rungs at which ASHA stopped some, {_listed(rungs)}." if rungs else " ASHA stopped none."
    )
    alive = _alive(trials)
    return Figure("survival", title, caption, _survival_spec(alive, rungs), lambda: _draw_survival(alive, rungs))


def savings(study: Study) -> Figure | Missing:
    """Epochs spent and saved, trial by trial."""
    title = "Epochs saved"
    if not any(trial.spent for trial in study.trials):
        return Missing("savings", title, "no epoch has been trained yet")
    spent, full = study.epochs_spent(), study.epochs_without_pruning()
    bad = [trial for trial in study.trials if trial.end and trial.end.reason.is_bad]
    lost = f"{sum(t.spent for t in bad)} of them went into {len(bad)} bad trials. " if bad else ""
    caption = (
        f"{spent} epochs trained, {full} without pruning: {percent(share_saved(spent, full))} saved. {lost}"
        "One bar per trial; faint: saved."
    )
    return Figure("savings", title, caption, _savings_spec(study), lambda: _draw_savings(study))


def _listed(rungs: list[int]) -> str:
    return "epochs " + ", ".join(map(str, rungs)) if len(rungs) > 1 else f"epoch {rungs[0]}"


def _alive(trials: list[Trial]) -> dict[str, list[int]]:
    """Per state, the number of trials that went on after epoch 0, 1, 2, ..."""
    last = max(trial.spent for trial in trials)
    groups = by_state(trials)[::-1]
    return {state: [sum(t.spent > epoch for t in group) for epoch in range(last + 1)] for state, group in groups}


def _survival_spec(alive: dict[str, list[int]], rungs: list[int]) -> dict[str, Any]:
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hv", "width": 0.5, "color": COLOURS[state]},
            "fill": "tonexty" if i else "tozeroy",
            "fillcolor": COLOURS[state],
            "stackgroup": "alive",
            "x": list(range(len(counts))),
            "y": counts,
            "name": label(state),
            "hovertemplate": "%{y}<extra>%{fullData.name}</extra>",
        }
        for i, (state, counts) in enumerate(alive.items())
    ]
    lines = [
        {
            "type": "line",
            "x0": rung,
            "x1": rung,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"dash": "dot", "width": 1.5},
        }
        for rung in rungs
    ]
    layout = {
        "height": 360,
        "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"} | epoch_axis(len(next(iter(alive.values()))) - 1),
        "yaxis": {"title": {"text": "trials"}, "rangemode": "tozero"},
        "shapes": lines,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "margin": {"l": 56, "r": 12, "t": 58, "b": 48},
        "hovermode": "x unified",
    }
    return {"data": data, "layout": layout}


def _draw_survival(alive: dict[str, list[int]], rungs: list[int]) -> Canvas:
    figure, (panel,) = canvas(6.5, 3.6)
    epochs = range(len(next(iter(alive.values()))))
    colours = [COLOURS[state] for state in alive]
    panel.stackplot(epochs, *alive.values(), step="post", colors=colours, labels=[label(state) for state in alive])
    for rung in rungs:
        panel.axvline(rung, linestyle=":", color="0.2", linewidth=1.2)
    panel.set_xlabel("epoch")
    panel.set_ylabel("trials")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _spared(study: Study, trial: Trial) -> int:
    """Epochs that pruning spared this trial."""
    return study.unpruned(trial) - trial.spent


def _savings_spec(study: Study) -> dict[str, Any]:
    groups = by_state(study.trials)
    hidden = [trial for trial in study.trials if _spared(study, trial)]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "x": [trial.number for trial in group],
            "y": [trial.spent for trial in group],
            "text": [trial.number for trial in group],
            "meta": "trials",
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": COLOURS[state], "line": {"width": 0}},
            "name": label(state),
        }
        for state, group in groups
    ]
    data.append(
        {
            "type": "bar",
            "x": [trial.number for trial in hidden],
            "y": [_spared(study, trial) for trial in hidden],
            "marker": {"color": "rgba(128,128,128,0.18)", "line": {"width": 0}},
            "name": "saved",
            "hovertemplate": "trial %{x}: %{y} epochs saved<extra></extra>",
        }
    )
    layout = {
        "height": 320,
        "barmode": "stack",
        "bargap": 0.15,
        "xaxis": {"title": {"text": "trial"}},
        "yaxis": {"title": {"text": "epochs"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "margin": {"l": 56, "r": 12, "t": 58, "b": 48},
    }
    return {"data": data, "layout": layout}


def _draw_savings(study: Study) -> Canvas:
    figure, (panel,) = canvas(8.0, 3.2)
    for state, group in by_state(study.trials):
        panel.bar([t.number for t in group], [t.spent for t in group], color=COLOURS[state], label=label(state))
    hidden = [trial for trial in study.trials if _spared(study, trial)]
    saved = [_spared(study, trial) for trial in hidden]
    panel.bar([t.number for t in hidden], saved, bottom=[t.spent for t in hidden], color="0.9", label="saved")
    panel.set_xlabel("trial")
    panel.set_ylabel("epochs")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure
