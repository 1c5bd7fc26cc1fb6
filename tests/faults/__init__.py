"""The fault kit: each fault that a collector meets in its life, provoked on purpose, and judged by what is on disk.

    python -m tests.faults --list
    python -m tests.faults --run reset --run half-open
    python -m tests.faults --all --target 'my-collector --ws {ws_url} --symbol {symbol} --out {data_dir}'

How a case runs:

1. `exchange` plays a market in which every row follows from its number, so that what was sent is known to the byte.
   Between it and the collector stands a `proxy`, which can behave as badly as any network.
2. `target` starts the collector as a process of its own: the real command line, real sockets, real files.
3. The case's coroutine (`network`, `lies`, `process`, `disk`, `settings`) does its harm and heals it (`scene`);
   `together` lets two faults stand at once, and stops or kills the collector while they stand.
4. `judge` reads what the collector left behind and says what is missing, double, out of order, torn or altered;
   `claims` holds what it said meanwhile, and at each stop, against the truth.

Any collector can be judged that takes a websocket address and writes text: see `target.Target`.
"""
