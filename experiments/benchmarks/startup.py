"""Print the seconds from the first import to the end of a contender's first step.

python startup.py MODULE JOB
"""

import time

START = time.perf_counter()


def main(module: str, text: str) -> None:
    from importlib import import_module

    from job import Job

    job = Job.loads(text)
    run = import_module(module).TASKS[job.task](job)(1)
    run()
    print(time.perf_counter() - START)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
