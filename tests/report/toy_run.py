"""A run folder of a launch that was never made: random images, every status, odd names."""

import json

import numpy as np

from dag_jax import files
from dag_jax.engine.audit import Finding
from dag_jax.report import audit as audit_report
from dag_jax.runs import rundir, scores

CLASSES = ["background", "cat", "<b>dog</b>"]
ODD = "a/b c?#%&<img src=x onerror=alert(1)>'\"</script>\u2028é"
UNLABELLED = "image_008"  # of whose PNG no labels are kept, as an earlier version did
METHOD = {"rounded": False, "margin": 0.0}
SIDE = 12


def record(i, status, *, png=False, left=0):
    counts = [0] if status == "NO_TARGETS" else [100, 60 - i, left]
    return {
        "status": status,
        "num_steps": 2 + 7 * i % 5,
        "active_counts": counts,
        "perceptibility": 0.001 * (1 + 5 * i % 7),
        "largest_change": 1.0 + 3 * i % 11,
        "fooled": status == "FOOLED",
        "fooled_png": png,
        "active_png": 0 if png else 3,
    }


STATES = (
    *(("FOOLED", True, 0), ("FOOLED", False, 0), ("MAX_STEPS", False, 7)),
    *(("NO_TARGETS", True, 0), ("ZERO_GRADIENT", False, 40)),
)


def image_of(i):
    image = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE + 2, 3), dtype=np.uint8)
    image[:2], image[2:4] = 0, 255  # where the sum is clipped
    return image


def make_row(folder, keys, *, detects=False):
    """Write a finished row of images that are random, and return it."""
    manifest = {"title": "Toy & <co>", "classes": CLASSES, "method": METHOD}
    manifest |= {"task": "detection" if detects else "segmentation"}
    results = rundir.Results(folder, manifest, keys)
    for i in range(len(keys)):
        status, png, left = STATES[i % len(STATES)]
        change = np.random.default_rng(99 + i).normal(0, 4, (SIDE, SIDE + 2, 3))
        change = np.float32(np.rint(2 * change) / 2)  # halves: where rounding loses most
        image = image_of(i)
        about = record(i, status, png=png, left=left) | {"image_sha256": files.sha256(image)}
        results.add(i, image, change, about, 0.0)
        for column, label in (("orig", 1), ("advr", 2), ("advr_uint8", 2 if png else 1)):
            if detects:
                boxes = np.float32([[1, 2, 7, 8], [1, 2, 9, 9]])
                second = 0.75 if column == "advr_uint8" else 0.2
                values = {"scores": np.float32([0.9, second]), "classes": np.int32([label, 1])}
                results.put(column, i, {"boxes": boxes, **values})
            else:
                labels = np.full((SIDE, SIDE + 2), label)
                confusion = np.zeros((3, 3), int)
                confusion[1, label] = labels.size
                arrays = {"confusion": confusion}
                if (column, keys[i]) != ("advr_uint8", UNLABELLED):
                    arrays[scores.LABELS] = scores.pack_labels(labels)
                results.put(column, i, arrays)
    intervals = {name: [70.0 - i, 60.0, 80.0] for i, name in enumerate(("orig", "advr", "perm"))}
    differences = {"advr_minus_orig": [-1.0, -3.0, -0.5], "perm_minus_orig": [-2.0, -9.0, 1.0]}
    row = {
        **{"row": "toy", "network": "toy", "title": manifest["title"], "task": manifest["task"]},
        **{"classes": CLASSES, "intervals": intervals | differences},
        **{name: values[0] for name, values in intervals.items()},
        "class_scores": {"orig": [90.0, 50.0, None], "advr": [1.5, 0.0, None]},
        **scores.summary_of(results.records()),
        **{"skipped": 2, "skipped_files": ["b<b>.png is cut"]},
    }
    files.write_json(results.folder / "row.json", row)
    return row


def make_table(folder, keys, names=("toy",)):
    """Write the folder of a launch, with a failing check, and return its rows."""
    rundir.claim(folder, {"launch": "table1", "settings": {"limit": "<&>"}})
    rows = []
    for i, name in enumerate(names):
        some = keys[:5] if i else keys
        row = make_row(folder / rundir.folder_name(name), some, detects=bool(i)) | {"row": name}
        rows.append(row)
    findings = [
        Finding("it <i>grows</i>", False, "it does not", "raise --max_steps"),
        Finding("it repeats", True, "it does", ""),
    ]
    audit_report.write(
        folder,
        "table1",
        "# Table",
        {"rows": rows},
        findings={names[0]: findings},
        titles={name: name for name in names},
    )
    return rows


def loaded(folder, place, part):
    """Return what a script of the page would be given."""
    text = (folder / "report_files" / "rows" / place / f"{part}.js").read_text()
    name, content = json.loads(f"[{text[len('dagReport.take(') : -len(');') - 1]}]")
    assert name == [place, part]
    return content
