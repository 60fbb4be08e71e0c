"""The style sheet of a report: light and dark, phone and paper; colours that colour-blind readers tell apart."""

from lowbit.results.formats import NARROW

# Okabe and Ito's palette without its yellow, which white paper swallows; on dark ground lighter shades of it.
_LIGHT = ("#0072b2", "#c44e00", "#00795a", "#b0487f", "#8a6d00", "#3f7fbf", "#5b4bb7", "#4d4d4d")
_DARK = ("#5fb4f0", "#ff9a52", "#3ecfa3", "#ee9fc9", "#e8c14a", "#a5d3f7", "#b6a8ff", "#c9c9c9")


def _palette(colors: tuple[str, ...]) -> str:
    return " ".join(f"--c{place}: {color};" for place, color in enumerate(colors))


_INK_LIGHT = "--ink: #1d1d1f; --soft: #55555c; --rule: #c9c9d0; --paper: #fff; --box: #f3f3f6; --good: #12732a;"
_INK_DARK = "--ink: #ececf0; --soft: #b3b3bd; --rule: #4a4a55; --paper: #17171b; --box: #24242b; --good: #63d184;"

CSS = f"""\
:root {{ color-scheme: light dark; {_INK_LIGHT} --bad: #b3261e; --high: #1a56b0; {_palette(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ {_INK_DARK} --bad: #ff8a80; --high: #8ab4ff; {_palette(_DARK)} }}
}}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem;
  color: var(--ink); background: var(--paper); }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .3em 0; }}
h2 {{ font-size: 1.25rem; margin: 2em 0 .4em; padding-top: .5em; border-top: 1px solid var(--rule); }}
h3 {{ font-size: 1rem; margin: 1.2em 0 .3em; }}
p {{ margin: .5em 0; max-width: 48rem; }}
a {{ color: var(--c0); }}
nav a {{ display: inline-block; margin-right: 1em; padding: .15em 0; }}
.soft {{ color: var(--soft); }}
.wide {{ overflow-x: auto; }}
.hint {{ display: none; color: var(--soft); }}
@media screen and (max-width: {NARROW}) {{ .hint {{ display: block; }} }}
table {{ border-collapse: collapse; border-block: 2px solid var(--ink); font-variant-numeric: tabular-nums; }}
th {{ border-bottom: 1px solid var(--ink); text-align: left; vertical-align: bottom; }}
th, td {{ padding: .25em .7em; }}
td {{ white-space: nowrap; }}
.right {{ text-align: right; }}
tr.new td {{ border-top: 1px solid var(--rule); }}
.match, .done {{ color: var(--good); }}
.below, .not-run {{ color: var(--bad); }}
.above {{ color: var(--high); }}
.panels {{ display: grid; gap: 1rem 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }}
figure {{ margin: 0; break-inside: avoid; max-width: 30rem; }}
figcaption {{ font-weight: 600; overflow-wrap: anywhere; }}
.chart {{ display: block; width: 100%; height: auto; font-size: 16px; }}
.chart text {{ fill: var(--soft); }}
.chart text.mark {{ fill: var(--ink); font-weight: 600; }}
.end {{ text-anchor: end; }}
.middle {{ text-anchor: middle; }}
.axis, .grid, path.mark {{ fill: none; stroke: var(--soft); }}
.grid {{ stroke: var(--rule); stroke-width: .7; }}
path.mark {{ stroke-dasharray: 3 3; }}
.line {{ fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }}
.dot {{ fill: var(--c); stroke: var(--paper); stroke-width: 1; }}
.area {{ fill: var(--c); }}
.latent {{ --c: var(--soft); }}
{" ".join(f".c{place} {{ --c: var(--c{place}); }}" for place in range(len(_LIGHT)))}
.legend {{ list-style: none; margin: .3em 0 1em; padding: 0; display: flex; flex-wrap: wrap; gap: .1em 1.4em; }}
.legend li {{ overflow-wrap: anywhere; }}
.sample {{ width: 34px; height: 18px; vertical-align: -3px; margin-right: .4em; }}
td.heat {{ background: rgb(196 78 0 / var(--share)); }}
pre {{ background: var(--box); padding: .6em .8em; margin: .3em 0 1em; font-size: 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }}
details {{ margin: .6em 0; }}
summary {{ cursor: pointer; padding: .3em 0; }}
@media print {{
  :root {{ color-scheme: light; {_INK_LIGHT} --bad: #b3261e; --high: #1a56b0; {_palette(_LIGHT)} }}
  body {{ max-width: none; padding: 0; }}
  nav {{ display: none; }}
  .wide {{ overflow: visible; }}
  .heat, .area, .dot {{ print-color-adjust: exact; }}
  .panels {{ grid-template-columns: 1fr 1fr; }}
  h2, h3 {{ break-after: avoid; }}
}}"""
