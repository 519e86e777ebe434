#!/usr/bin/env python3
"""Draws the figures of bench.json as SVG: plots.py BENCH.JSON FOLDER.

The same figures give the same bytes. Colours of text and grid follow the reader's light or dark scheme; nothing is behind them.
A plot whose tables were not measured is left as it is.
"""

import json
import math
import os
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 76, 190, 44, 56
# Each at least 3:1 against white and against near-black.
COLOURS = ["#2f7ed8", "#d9541e", "#2a9d5c", "#9a63d6", "#b8860b", "#0f93a8"]
STYLE = """<style>
text{font:12px sans-serif;fill:#24292f}.title{font-size:15px;font-weight:bold}.grid{stroke:#8c959f;stroke-opacity:.35;fill:none}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}}
</style>"""


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(value):
    """At most three digits that matter, with k or M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def step_of(high):
    """A round distance between ticks, so that there are at most six up to `high`."""
    step = 10.0 ** math.floor(math.log10(high / 4))
    return step * next(factor for factor in (1, 2, 5, 10) if high / (step * factor) <= 6)


class Plot:
    """A plot's frame: where a value stands, and what is drawn so far. A scale that is not logarithmic begins at 0 and ends with a tick."""

    def __init__(self, title, x_name, y_name, low, high, logarithmic):
        self.low, self.high, self.logarithmic, self.title = low, high, logarithmic, title
        if not logarithmic:
            self.high = math.ceil(high / step_of(high)) * step_of(high)
        self.parts = [f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
                      f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_name)}</text>',
                      f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>']
        for tick in self.ticks():
            at = self.y(tick)
            self.parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
                              f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>')

    def ticks(self):
        if self.logarithmic:
            return [10.0 ** power for power in range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)]
        step = step_of(self.high)
        return [step * count for count in range(round(self.high / step) + 1)]

    def y(self, value):
        if self.logarithmic:
            share = math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        else:
            share = value / self.high
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def x(self, at, count):
        return LEFT + (at + 0.5) / count * (WIDTH - LEFT - RIGHT)

    def name(self, x, name):
        self.parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(name)}</text>')

    def names(self, names):
        for at, name in enumerate(names):
            self.name(self.x(at, len(names)), name)

    def legend(self, names):
        for at, name in enumerate(names):
            y = TOP + 8 + 20 * at
            self.parts.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{y - 9}" width="12" height="12" fill="{COLOURS[at]}"/>'
                              f'<text x="{WIDTH - RIGHT + 32}" y="{y + 2}">{escape(name)}</text>')

    def line(self, index, values):
        """One value for each name; of a measured one, what `spread` makes of its rounds, also from where to where it went."""
        points = [(self.x(at, len(values)), value) for at, value in enumerate(values) if value is not None]
        self.points(index, points)

    def points(self, index, values):
        whiskers = [f"M{x:.1f} {self.y(value['min']):.1f}V{self.y(value['max']):.1f}" for x, value in values if isinstance(value, dict)]
        if whiskers:
            self.parts.append(f'<path d="{"".join(whiskers)}" fill="none" stroke="{COLOURS[index]}" stroke-opacity=".5"/>')
        points = [(x, self.y(middle(value))) for x, value in values]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[index]}"/>' for x, y in points)
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[index]}" stroke-width="2"/>{dots}')

    def bar(self, at, count, stack):
        """Values above each other, one colour each, the sum on top."""
        width, below = 0.5 * (WIDTH - LEFT - RIGHT) / count, 0.0
        for index, value in enumerate(stack):
            top = self.y(below + value)
            self.parts.append(f'<rect x="{self.x(at, count) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
                              f'height="{self.y(below) - top:.1f}" fill="{COLOURS[index]}"/>')
            below += value
        self.parts.append(f'<text x="{self.x(at, count):.1f}" y="{self.y(below) - 5:.1f}" text-anchor="middle">{below:.2f}</text>')

    def text(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
                f'<title>{escape(self.title)}</title>\n{STYLE}\n' + "\n".join(self.parts) + "\n</svg>\n")


def middle(value):
    return value["median"] if isinstance(value, dict) else value


def lines(title, x_name, y_name, names, series, logarithmic=False):
    values = [value["max"] if isinstance(value, dict) else value for _, line in series for value in line if value is not None]
    if logarithmic:
        low, high = 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))
    else:
        low, high = 0.0, max(values)
    plot = Plot(title, x_name, y_name, low, high, logarithmic)
    plot.names(names)
    plot.legend([name for name, _ in series])
    for index, (_, line) in enumerate(series):
        plot.line(index, line)
    return plot.text()


def throughput(data):
    depths = sorted({one["depth"] for one in data["depth"]})
    kinds = list(dict.fromkeys(one["kind"] for one in data["depth"]))
    at = {(one["kind"], one["depth"]): one["iops"] for one in data["depth"]}
    return lines("4 KiB random reads over queue depth", "commands in flight, one connection", "per second", [str(depth) for depth in depths],
                 [(kind, [at.get((kind, depth)) for depth in depths]) for kind in kinds])


def latency(data):
    wanted = [one for one in data["depth"] if one["depth"] in (1, 32, 128) and one["percentiles"] and "memory" in one["kind"]]
    names = list(wanted[0]["percentiles"])
    return lines("Latency of 4 KiB random reads, memory namespace", "percentile", "µs", [f"{float(name):g}" for name in names],
                 [(f"{one['kind'].removeprefix('memory, ')}, depth {one['depth']}", [one["percentiles"][name] for name in names]) for one in wanted],
                 logarithmic=True)


def cpu(data):
    rows = [(f"{one['space']} {one['rw'].removeprefix('rand')}", [one["target_us"], one["host_us"]]) for one in data["cost"]]
    # With room for the sum above the highest.
    plot = Plot("CPU time of a 4 KiB I/O at depth 128, event-driven", "namespace and direction", "µs", 0.0, max(sum(stack) for _, stack in rows) * 1.08, False)
    plot.names([name for name, _ in rows])
    plot.legend(["target", "initiator"])
    for at, (_, stack) in enumerate(rows):
        plot.bar(at, len(rows), stack)
    return plot.text()


def memory(data):
    rows = [(one["connections"], one["rss_mib"]) for one in data["idle"]]
    plot = Plot("Resident memory of the target, queues of 128 entries", "idle connections", "MiB", 0.0, max(rss["max"] for _, rss in rows), False)
    # In proportion: the slope is what a connection takes.
    most = max(count for count, _ in rows)
    points = [(LEFT + 10 + count / most * (WIDTH - LEFT - RIGHT - 30), rss) for count, rss in rows]
    for (x, rss), (count, _) in zip(points, rows):
        plot.name(x, str(count))
        plot.parts.append(f'<text x="{x + 7:.1f}" y="{plot.y(rss["median"]) + 16:.1f}">{rss["median"]:.1f}</text>')
    plot.points(0, points)
    return plot.text()


PLOTS = {"throughput": ("depth", throughput), "latency": ("depth", latency), "cpu": ("cost", cpu), "memory": ("idle", memory)}


def draw(data, folder):
    """Writes the plots whose tables are there; their names."""
    os.makedirs(folder, exist_ok=True)
    drawn = []
    for name, (table, plot) in PLOTS.items():
        # Depths alone, without percentiles, make a plot of throughput only.
        if table in data and (plot is not latency or any(one["percentiles"] for one in data[table])):
            path = os.path.join(folder, f"{name}.svg")
            with open(path, "w", encoding="utf-8") as out:
                out.write(plot(data))
            drawn.append(path)
    return drawn


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as figures:
        print("\n".join(draw(json.load(figures), sys.argv[2])))
