"""Plants one fault at a time in the files that decide; each must fail a test of its own file.

``python tests/mutants.py`` works in a copy of the tree, names the faults that no test noticed, and
fails where there is one. Words as arguments choose the faults whose file or name has one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlflow_e2eai"

LIMIT_S = 300
"""A fault with which a test hangs for so long is noticed too."""

CAUGHT, TIMED_OUT = 1, 124
"""Exit codes: of pytest where a test failed, and of a run that took too long."""

TESTS = {
    "evaluation/gates.py": ["evaluation/test_gates.py"],
    "evaluation/quantized_gates.py": [
        *(
            "evaluation/test_quantized_gates.py",
            "-k",
            "margin or best or as_its_graph or busy or modules",
        ),
    ],
    "promotion/policy.py": ["promotion/test_policy.py"],
    "promotion/incumbent.py": ["promotion/test_incumbent.py"],
    "bundle/coverage.py": ["promotion/test_policy.py"],
    "bundle/audit.py": ["bundle/test_audit.py", "-k", "not flipped"],
    "parity/comparison.py": ["parity/test_compare.py", "-k", "not memory"],
    "parity/comparer.py": [
        *("parity/test_compare.py", "parity/test_tolerances.py", "-k", "not memory"),
    ],
    "parity/tolerances.py": ["parity/test_tolerances.py"],
    "parity/slices.py": ["parity/test_slices.py"],
    "latency/ratios.py": ["latency/test_ratios.py"],
    "artifacts/files.py": ["artifacts/test_files.py"],
    "pipeline/keys.py": ["pipeline/test_keys.py"],
    "evaluation/metric_code.py": ["pipeline/test_keys.py"],
    "tracking/store/stage_results.py": ["pipeline/test_reuse.py", "-k", "stored or finish"],
}
"""The tests of each file."""


class Mutant(NamedTuple):
    """A fault: a text that is in a file once, and what stands there instead."""

    file: str
    name: str
    text: str
    instead: str


def planted(file: str, *faults: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(file, *fault) for fault in faults]


MUTANTS = [
    *planted(
        "evaluation/gates.py",
        (
            "a task drop is counted the wrong way round",
            "value - now.get(name, math.nan)",
            "now.get(name, math.nan) - value",
        ),
        ("the smallest drop counts", "else max(drops)", "else min(drops)"),
        (
            "a metric that is missing now is no drop",
            "now.get(name, math.nan) for",
            "now.get(name, value) for",
        ),
        (
            "metrics that were not there before are no matter",
            "return math.nan if now else None",
            "return None",
        ),
        ("the limit itself fails", "value <= self.limit if", "value < self.limit if"),
        ("at_least is strict", "else value >= self.limit", "else value > self.limit"),
        (
            "bounds are the wrong way round",
            'if self.bound == "at_most" else value',
            'if self.bound != "at_most" else value',
        ),
        (
            "NaN passes",
            "if value is None or not math.isfinite(value):\n            return False",
            "if value is None:\n            return False\n        if not math.isfinite(value):\n            return True",
        ),
        (
            "any gate that passes promotes",
            "bool(deciding) and all(deciding)",
            "bool(deciding) and any(deciding)",
        ),
        ("nothing is promoted by no gates", "bool(deciding) and all(deciding)", "all(deciding)"),
        (
            "a gate that warns decides",
            'deciding = [verdict.passed for verdict in self.verdicts if verdict.severity == "block"]',
            "deciding = [verdict.passed for verdict in self.verdicts]",
        ),
        (
            "the best of the variants is read",
            'choose = max if gate.bound == "at_most" else min',
            'choose = min if gate.bound == "at_most" else max',
        ),
        (
            "a value that cannot be told is skipped",
            "unclear = [value for value in fitting if math.isnan(value.value)]",
            "unclear: list[MetricValue] = []",
        ),
        (
            "a selected variant that nobody measured is no matter",
            "if gate.selection and lacking and",
            "if not gate.selection and lacking and",
        ),
        (
            "counts are not added up",
            "value=float(len(counted))",
            "value=float(bool(counted))",
        ),
        (
            "an optional gate applies without data",
            "elif gate.optional and found is None",
            "elif not gate.optional and found is None",
        ),
        (
            "gates against a champion apply without one",
            "if gate.compares and not has_champion",
            "if gate.compares and has_champion",
        ),
        (
            "a gate of one precision reads all",
            "(self.precision is None or self.precision == value.precision)",
            "True",
        ),
        (
            "a gate of one target reads all",
            "(self.target is None or self.target in value.targets)",
            "True",
        ),
        ("a gate of one size reads the usual one", "else value.at == gate.at", "else value.usual"),
    ),
    *planted(
        "evaluation/quantized_gates.py",
        (
            "the best interval's lower bound decides",
            "other.variant).high for",
            "other.variant).low for",
        ),
        (
            "the fastest of the others does not matter",
            "else max(ratios, default=math.nan)",
            "else min(ratios, default=math.nan)",
        ),
        ("a failed comparison is none", "float(not accuracy.passed)", "float(accuracy.passed)"),
        (
            "it is compared with the largest of the others",
            "_size(artifact) / min(sizes)",
            "_size(artifact) / max(sizes)",
        ),
        (
            "the larger of the two gains counts",
            "= min(one for one in ratios",
            "= max(one for one in ratios",
        ),
        (
            "the drop is of the variant before the module",
            "drop(evidence[0].task, accuracy.task)",
            "drop(accuracy.task, evidence[0].task)",
        ),
        (
            "the limit on a task's drop is twice as wide",
            "limit=0.01, optional=True",
            "limit=0.02, optional=True",
        ),
        ("no gain is enough", 'bound="at_most", limit=0.9)', 'bound="at_most", limit=1.1)'),
        (
            "quantised variants are compared with each other",
            "and by_sha[other.sha256].precision not in TYPES\n            and",
            "and",
        ),
    ),
    *planted(
        "promotion/incumbent.py",
        ("a size may be left out", "for items in missing:", "for items in ():"),
        (
            "a size of one variant may be left out",
            "        if not found:\n            reason = _no_size",
            "        if False:\n            reason = _no_size",
        ),
        ("a size may be left out of any metric", "        if like:", "        if not pairs:"),
        (
            "a machine may be left out of any metric",
            "elif not any(is_like(there, old_there, variant) for there in challenger.by_machine):",
            "elif False:",
        ),
        (
            "machines of another kind are alike",
            "or kind != machine_to_compare(other, variant)",
            "",
        ),
        ("machines that are not known are alike", "None in kind.values() or ", ""),
        (
            "the noisiest variant counts",
            "sorted(bounds, key=_known_and_low)[:1]",
            "sorted(bounds, key=_known_and_low)[-1:]",
        ),
        ("the age of a file is equal", " and metric != _AGE", ""),
        (
            "a missing number of a file is equal",
            "if same and not (math.isnan(value.value) and value.reason is None)",
            "if same",
        ),
        ("a busy machine compares", "return replace(value, reason=NOISY)", "pass"),
        (
            "too few calls compare",
            'return replace(value, reason="not comparable, as too few calls were measured")',
            "return replace(value, value=1.0)",
        ),
    ),
    *planted(
        "bundle/coverage.py",
        ("one GPU of several is enough", "if missing or not met:", "if not met:"),
        (
            "an engine counts on every GPU of its target",
            "(str(file.target), here)",
            "every_target(file)",
        ),
        ("any file of a variant's name counts", " and entry.sha256 == engine.sha256", ""),
    ),
    *planted(
        "promotion/policy.py",
        (
            "excluded engines are considered",
            "if not (is_excluding and _is",
            "if not (False and _is",
        ),
        (
            "an engine is excluded on every GPU where it lacks one",
            "and set(value.targets[1:]) <= {*missing}",
            "",
        ),
        (
            "engines that nobody measured are no matter",
            'if names and policy.unmeasured != "exclude":',
            'if names and policy.unmeasured == "warn":',
        ),
        (
            "required targets do not decide",
            "verdicts = [*decision.verdicts, *required, *policy.given]",
            "verdicts = [*decision.verdicts, *policy.given]",
        ),
        ("given verdicts do not decide", "*required, *policy.given]", "*required]"),
        ("a required target is always met", "passed=met > 0", "passed=met >= 0"),
        (
            "evidence of another GPU counts",
            "and required.target in targets_of(engine, there.environment)",
            "",
        ),
        (
            "evidence that failed counts",
            "if not all(entry.passed for _, entry in entries)",
            "if not entries",
        ),
        ("the oldest evidence counts", "newest = min(known)", "newest = max(known)"),
        (
            "evidence of any age counts",
            "if newest > required.max_age_days",
            "if newest < -required.max_age_days",
        ),
        (
            "an engine in another precision counts",
            "if required.precision not in (None, engine.arithmetic)",
            "if required.precision == engine.arithmetic == 0",
        ),
        (
            "an engine of another TensorRT counts",
            "and not fnmatchcase(version, required.tensorrt)",
            "and fnmatchcase(version, required.tensorrt)",
        ),
    ),
    *planted(
        "parity/tolerances.py",
        ("fp32's tolerance is doubled", '"fp32": 1e-3,', '"fp32": 2e-3,'),
        ("fp16's tolerance is tripled", '"fp16": 1e-2,', '"fp16": 3e-2,'),
        ("bf16's tolerance is doubled", '"bf16": 8e-2,', '"bf16": 16e-2,'),
        (
            "int8's tolerance is doubled",
            'TOLERANCES: Mapping[str, float] = {\n    "fp32": 1e-3,\n    "tf32": 1e-2,\n    "fp16": 1e-2,\n    "bf16": 8e-2,\n    "int8": 1e-1,',
            'TOLERANCES: Mapping[str, float] = {\n    "fp32": 1e-3,\n    "tf32": 1e-2,\n    "fp16": 1e-2,\n    "bf16": 8e-2,\n    "int8": 2e-1,',
        ),
        ("fp32's noise is tripled", '"fp32": 1e-4,', '"fp32": 3e-4,'),
        ("fp32's slices are doubled", '"fp32": 5e-3,', '"fp32": 1e-2,'),
        ("two outputs may differ by twice as much", "NOISE_SHARE = 0.25", "NOISE_SHARE = 0.5"),
        ("or by twice the reference's noise", "NOISE_FACTOR = 3.0", "NOISE_FACTOR = 6.0"),
        (
            "an output's own limit is not read",
            "return self.outputs.get(output, self.default)",
            "return self.default",
        ),
        (
            "limits of other outputs are taken",
            "if unknown := sorted(",
            "if unknown := sorted(set()) and sorted(",
        ),
    ),
    *planted(
        "bundle/audit.py",
        (
            "the manifest's own digest is not compared",
            "if sha256 is not None:",
            "if sha256 is None:",
        ),
        (
            "digests are not compared",
            "            _check_digest(item, directory)\n",
            "            pass\n",
        ),
        (
            "sizes are not compared",
            "            _check_size(item, directory)\n",
            "            pass\n",
        ),
        (
            "files that no manifest names are taken",
            "if extra := sorted(found - names)",
            "if extra := sorted(found - found)",
        ),
        (
            "links are followed",
            "refuse_links(directory, {*names, EXAMPLE})",
            "refuse_links(directory, ())",
        ),
        (
            "libraries are not compared",
            "    for library in item.libraries:\n        verify(",
            "    for library in ():\n        verify(",
        ),
        (
            "files of weights are not compared",
            "            verify(path.parent / file.path, file.sha256)\n",
            "            pass\n",
        ),
        (
            "files of weights are in no manifest",
            "for file in item.weights)\n\n\ndef _check_distinct",
            "for file in ())\n\n\ndef _check_distinct",
        ),
        ("two graphs in one file are taken", "if count > 1:", "if False:"),
        (
            "a file that changes while it is opened is taken",
            "if _state(path) != state:",
            "if _state(path) is None:",
        ),
    ),
    *planted(
        "parity/comparison.py",
        (
            "no samples pass",
            '        comparer.add("no_samples", sentence="There were no samples, so nothing was compared.")',
            "        pass",
        ),
        (
            "empty samples pass",
            '        comparer.add("no_samples", sentence="The samples are empty, so nothing was compared.")',
            "        pass",
        ),
        (
            "a changed input is no matter",
            "if not same_bits(array, np.asarray(sample[name]))",
            "if False",
        ),
        (
            "buffers are never poisoned",
            "self.raw[name].fill(poison(self.raw[name]))",
            "pass",
        ),
        (
            "only calls from several threads are added",
            "add(comparison, *self._run(sample, comparison))",
            "self._run(sample, comparison)",
        ),
        (
            "threads are not tried",
            "if count == len(window) and at_once > 1 and",
            "if count != len(window) and at_once > 1 and",
        ),
    ),
    *planted(
        "parity/comparer.py",
        (
            "a missing output is no matter",
            "for name in right.keys() - given.keys():",
            "for name in given.keys() - given.keys():",
        ),
        (
            "an output too many is no matter",
            "for name in given.keys() - right.keys():",
            "for name in right.keys() - right.keys():",
        ),
        (
            "another dtype is no matter",
            "if right.array.dtype != actual.array.dtype",
            "if right.array.dtype.kind != actual.array.dtype.kind",
        ),
        (
            "a wrong slice is no matter",
            "worst.noise_to_signal <= worst.limit",
            "worst.noise_to_signal >= worst.limit",
        ),
        (
            "noise over all samples is no matter",
            "or sums.noise_to_signal <= limit",
            "or sums.noise_to_signal > limit",
        ),
        (
            "two outputs for one input may differ",
            "if noise > max(allowed, reference)",
            "if noise > max(allowed, reference) + 1",
        ),
    ),
    *planted(
        "parity/slices.py",
        (
            "slices are compared with the whole output",
            "np.sqrt(sums.noise[compared] / sums.signal[compared])",
            "np.sqrt(sums.noise[compared] / sums.signal.sum())",
        ),
        ("the best slice is named", "worst = int(ratios.argmax())", "worst = int(ratios.argmin())"),
        ("long axes are left out", "MOST_SLICES = 512", "MOST_SLICES = 8"),
        (
            "a slice that is lost passes",
            "limit=min(limit * scatter, max(limit, MOST))",
            "limit=limit * scatter + 1",
        ),
        ("zeros but for rounding are compared", "FLOOR = 1e-5", "FLOOR = 0.0"),
    ),
    *planted(
        "latency/ratios.py",
        (
            "the interval's upper bound is widened",
            "min(value + wider * max(high, 0), most)",
            "min(value + 2 * wider * max(high, 0), most)",
        ),
        ("its lower bound is the value", "max(value + wider * min(low, 0), least)", "value"),
        (
            "the interval is not widened for few blocks",
            "return math.sqrt(blocks / freedom) * student / z",
            "return 1.0",
        ),
        (
            "noise is equal to nothing",
            "return self.noisy or self.low <= 1 <= self.high",
            "return self.low <= 1 <= self.high",
        ),
        (
            "the order of the two does not matter",
            "rows = np.stack([logs[first][:count], logs[~first][:count]])",
            "rows = np.stack([logs[first][:count], logs[first][:count]])",
        ),
        (
            "a ratio is turned round",
            "np.log(np.maximum(times, tick) / np.maximum(baseline, tick))",
            "np.log(np.maximum(baseline, tick) / np.maximum(times, tick))",
        ),
        ("few rounds have an interval", "if count < _FEWEST:", "if count < 1:"),
        (
            "a bound of others is the median",
            "return medians[rank], medians[-1 - rank]",
            "return medians[count // 2], medians[count // 2]",
        ),
    ),
    *planted(
        "artifacts/files.py",
        (
            "a digest is compared by its first two characters",
            "if (digest := sha256_of(path)) != sha256:",
            "if (digest := sha256_of(path))[:2] != sha256[:2]:",
        ),
        (
            "an atomic write is a copy",
            "        temporary.replace(out)",
            "        out.write_bytes(temporary.read_bytes())",
        ),
        (
            "a write that fails leaves its file",
            "    finally:\n        temporary.unlink(missing_ok=True)",
            "    finally:\n        pass",
        ),
        (
            "a file is moved though its block failed",
            "        yield temporary\n        # mkstemp",
            "        try:\n            yield temporary\n        finally:\n            temporary.replace(out)\n            temporary.touch()\n        # mkstemp",
        ),
        (
            "a seal is not compared",
            "if (digest := hashlib.sha256(plain).hexdigest()) != seal[1].decode():",
            "if (digest := hashlib.sha256(plain).hexdigest()) == seal[1].decode() == 0:",
        ),
        (
            "a name may lead out of its folder",
            'if path.anchor or ".." in path.parts:',
            "if path.anchor:",
        ),
        (
            "a name may be absolute",
            'if path.anchor or ".." in path.parts:',
            'if ".." in path.parts:',
        ),
        (
            "a pipe is read",
            "if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):",
            "if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):",
        ),
        (
            "files of text may have any length",
            "if len(data) > TEXT_BYTES:",
            "if len(data) > 2 * TEXT_BYTES:",
        ),
        (
            "numbers may be texts",
            "validate_json(text, strict=True)",
            "validate_json(text, strict=False)",
        ),
    ),
    *planted(
        "pipeline/keys.py",
        (
            "the settings are no part of a key",
            "_digest_of((stage, code_digest(), _versions(), parts))",
            "_digest_of((stage, code_digest(), _versions()))",
        ),
        (
            "the code is no part of a key",
            "_digest_of((stage, code_digest(), _versions(), parts))",
            "_digest_of((stage, _versions(), parts))",
        ),
        (
            "the libraries are no part of a key",
            "_digest_of((stage, code_digest(), _versions(), parts))",
            "_digest_of((stage, code_digest(), parts))",
        ),
        ("a path stands for its name", "return sha256_of(value)", "return value.name"),
        (
            "an array stands for its shape",
            "            digest.update(np.ascontiguousarray(value).tobytes())\n",
            "",
        ),
        (
            "a key is made without what is not known",
            "# what holds itself has no end\n        return None",
            '# what holds itself has no end\n        return ""',
        ),
        (
            "a metric that is not known is no matter",
            "    except UnknownContentError:\n        return UNKNOWN",
            "    except UnknownContentError:\n        pass",
        ),
        (
            "labels are no part of the data",
            "_add(digest, (inputs, labels))",
            "_add(digest, inputs)",
        ),
    ),
    *planted(
        "evaluation/metric_code.py",
        (
            "a metric may read a file",
            "if any(name.startswith(_READERS) for name in code.co_names):",
            "if False:",
        ),
        ("globals of a metric are no matter", "return self.of(surroundings[name])", "return name"),
        (
            "what a metric imports is no matter",
            "parts += [self.of(importlib.import_module(head)) for head in heads]",
            "parts += heads",
        ),
        (
            "code within the code of a metric is no matter",
            "return [*parts, *(self._of_names(each, surroundings) for each in inner)]",
            "return parts",
        ),
        ("a closure is no matter", "parts.append(self.of(cell.cell_contents))", "pass"),
        (
            "defaults of a metric are no matter",
            "own = (code, function.__defaults__, function.__kwdefaults__, vars(function))",
            "own = (code, vars(function))",
        ),
        (
            "what an object holds is no matter",
            "return [self.of(list(each) if isinstance(each, Iterator) else each) for each in stored]",
            "return [type(value).__qualname__]",
        ),
        (
            "a module of the caller's is known by its name",
            "return [(key, self.of(each)) for key, each in parts.items()]",
            "return module.__name__",
        ),
    ),
    *planted(
        "tracking/store/stage_results.py",
        (
            "a result that has changed is taken",
            "if hashlib.sha256(text.encode()).hexdigest() != sha256:",
            "if not text:",
        ),
        (
            "files of a model that have changed are taken",
            "    verify_logged_files(path, result.mlmodel_sha256, signature_sha256=signature)\n",
            "",
        ),
        (
            "models that are not ready are taken",
            'if str(model.status) != "READY":',
            'if str(model.status) == "":',
        ),
        (
            "runs that did not finish are taken",
            """'{key}' AND attributes.status = 'FINISHED'",""",
            """'{key}'",""",
        ),
    ),
]


def mutated(mutant: Mutant) -> str:
    """The file with the fault."""
    before = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    if before.count(mutant.text) != 1:
        msg = f"{mutant.file} has {before.count(mutant.text)} times what {mutant.name!r} replaces."
        raise ValueError(msg)
    return before.replace(mutant.text, mutant.instead)


def run_tests(tree: Path, file: str) -> int:
    """Run the tests of a file in a copy of the tree; returns the exit code."""
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    try:
        return subprocess.run(
            [sys.executable, *words, *TESTS[file]],
            cwd=tree / "tests",
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return TIMED_OUT


def main(words: Sequence[str]) -> int:
    """Plant the chosen faults; returns how many no test noticed, or could not be tried."""
    chosen = [
        mutant
        for mutant in MUTANTS
        if not words or any(word in f"{mutant.file}: {mutant.name}" for word in words)
    ]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "mlruns*", ".*_cache")
        shutil.copytree(ROOT, tree, ignore=ignored)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # all files but one are compiled already
        for file in dict.fromkeys(mutant.file for mutant in chosen):
            if (code := run_tests(tree, file)) != 0:
                print(f"{file}: its tests end with {code} without any fault", flush=True)
                return len(chosen)
        for mutant in chosen:
            began, path = time.monotonic(), tree / "mlflow_e2eai" / mutant.file
            before = path.read_text(encoding="utf-8")
            path.write_text(mutated(mutant), encoding="utf-8")
            code = run_tests(tree, mutant.file)
            path.write_text(before, encoding="utf-8")
            is_noticed = code in (CAUGHT, TIMED_OUT)
            survivors += not is_noticed
            word, seconds = "noticed" if is_noticed else "SURVIVED", time.monotonic() - began
            print(f"{word} ({code}, {seconds:.0f} s) {mutant.file}: {mutant.name}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults were noticed")
    return survivors


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
