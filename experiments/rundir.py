"""The folder that a launch writes to: one run's, and only that run's."""

import json
import pathlib


def write(path: pathlib.Path, text: str) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    partial.replace(path)


def settings_of(flag_values, module, *, without=("workdir", "cache_dir", "slots")) -> dict:
    """Return the flags that a launch defines itself, by name, less those that change no result.

    Args:
      flag_values: absl's FLAGS.
      module: the launch's module name, or "__main__".
      without: flags to leave out.
    """
    own = flag_values.flags_by_module_dict()[module]
    return {flag.name: flag.value for flag in own if flag.name not in without}


def claim(workdir, settings: dict) -> pathlib.Path:
    """Make a run's folder and write its settings first, or check that they are the same.

    Args:
      workdir: folder of the run.
      settings: what JSON can hold, of all that changes the results.

    Returns:
      The folder.

    Raises:
      ValueError: where the folder holds a run with other settings, or anything else.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        found = json.loads(path.read_text())
        other = sorted(k for k in settings | found if settings.get(k) != found.get(k))
        if other:
            raise ValueError(
                f"{workdir} holds results of a run with other settings ({', '.join(other)}); "
                "nothing was changed there. Give another --workdir, or remove the folder"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no run of this launch")
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(settings, indent=2) + "\n")
    return workdir
