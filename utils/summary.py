"""An evaluation as text: what evaluate.py prints."""


def summarise(metrics: dict) -> str:
    """The figures as a text table, and the targets."""

    def number(one: dict, key: str, scale: float) -> str:
        return f"{scale * one[key]:.4g}"

    lines = [f"{'figure':<40}{'value':>9}  {'95 % interval':<22}{'real':>8}"]
    for one in metrics["figures"]:
        name = f"{one['name']}, {one['encoder']}" if one["encoder"] else one["name"]
        if one["value"] is None:
            lines.append(f"{name:<40}  refused: {one['refused']}")
            continue
        scale = 100 if one["unit"] == "%" else 1
        ends = f"{number(one, 'low', scale)} to {number(one, 'high', scale)}"
        floor = number(one["floor"], "value", scale) if one["floor"] else ""
        lines.append(f"{name:<40}{number(one, 'value', scale):>9}  {ends:<22}{floor:>8}  {one['unit']}")
    lines += metrics.get("left_out", [])
    words = {True: "met", False: "not met", None: "not shown"}
    lines += [f"target {one['target']} {one['asked']}: {words[one['met']]}" for one in metrics["targets"]]
    return "\n".join(lines)
