"""tests/mutants.py: its list fits the product, and what it says of tests that see a mutant and of one that does not."""
import ast
import subprocess
import sys

import pytest

from tests import mutants
from tests.conftest import ROOT, make_file


def test_each_mutant_fits_its_file_and_names_tests_that_exist():
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 30
    for mutant in mutants.MUTANTS:
        text = (ROOT / mutant.file).read_text("utf-8")
        changed = mutants.mutated(text, mutant)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)), mutant
        for test in mutant.tests.split():
            file, _, name = test.partition("::")
            tests = (ROOT / "tests" / file).read_text("utf-8")
            assert f"\ndef {name.partition('[')[0]}(" in tests or not name, test


SMALL = """
import sys
from contextlib import suppress
from pathlib import Path
from tests import mutants

mutants.ROOT = Path(sys.argv.pop())
mutants.MUTANTS = [mutants.Mutant("a sum is 3", "product.py", "1 + 1", "1 + 2", "test_two.py"),
                   mutants.Mutant("nobody looks", "product.py", "1 + 2", "1 + 3", "test_two.py")]
with suppress(SystemExit):
    mutants.main()
print((mutants.ROOT / "product.py").read_text())
(mutants.ROOT / "product.py").write_text("two = 1 + 1 + 1 + 2")
mutants.main()
"""


@pytest.mark.slow
def test_what_is_caught_and_what_is_not(tmp_path):
    """Then the test fails without a mutant, too, and tells nothing."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    make_file(tmp_path / "product.py", "two = 1 + 1\nthree = 1 + 2\n")
    make_file(tmp_path / "tests/__init__.py", "")
    make_file(tmp_path / "tests/test_two.py",
              "import product\ndef test_no(): pass\ndef test_sum(): assert product.two == 2\n")
    done = subprocess.run([sys.executable, "-c", SMALL, tmp_path], cwd=ROOT, capture_output=True, text=True)
    _, first, second, last, *product = done.stdout.splitlines()
    assert "NOT CAUGHT" not in first and "a sum is 3: test_two.py::test_sum, " in first
    assert "NOT CAUGHT" in second and "nobody looks: test_two.py, " in second and last == "1 of 2 caught"
    assert product == ["two = 1 + 1", "three = 1 + 2", ""]
    assert done.returncode == 1 and "test_two.py::test_sum" in done.stderr


def test_a_text_that_is_not_there_once_is_named():
    for text, count in (("", 0), ("2 + 2 + 2 +", 3)):
        with pytest.raises(ValueError, match=f"'a name'.* file.py {count} times"):
            mutants.mutated(text, mutants.Mutant("a name", "file.py", "2 +", "3 +", ""))
