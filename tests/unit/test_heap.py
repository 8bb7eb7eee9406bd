from __future__ import annotations

from child import run_python

FAULTS = """
import resource, torch
from zeropoint import heap
torch.set_num_threads(1)
{prepare}
def work():
    values = torch.ones(3 << 18)  # 3 MB, three times
    return (values * 2 + values).sum()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pages_of_small_tensors_stay_while_large_ones_are_mapped() -> None:
    pages = 20 * 3 * (3 << 20) // 4096
    assert int(run_python(FAULTS.format(prepare="heap.map_large()"))) < pages / 10
