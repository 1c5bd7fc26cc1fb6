"""Stage."""
from tests.faults.scene import Case
CASES: tuple[Case, ...] = ()
