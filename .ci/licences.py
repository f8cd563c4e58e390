"""What is installed here and under which licence, as each package says itself: `make licences`."""

from importlib.metadata import Distribution, distributions


def licence(package: Distribution) -> str:
    """The licence of a package: its SPDX expression, else its classifiers, else the first line of its licence field."""
    about = package.metadata
    named = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if c.startswith("License :: ")]
    text = about.get("License-Expression") or "; ".join(named) or (about.get("License") or "").strip().split("\n")[0]
    return text[:70] or "not stated"


def main() -> None:
    """One line a package."""
    rows = {(d.metadata["Name"], d.version, licence(d)) for d in distributions() if d.metadata["Name"]}
    for name, version, text in sorted(rows, key=lambda row: row[0].lower()):
        print(f"{name:<32} {version:<16} {text}")


if __name__ == "__main__":
    main()
