"""One process with a session and nothing else: `ort_server.py {"path", "input", "batch"} ROW_FILE`.

It says `ready` after its first run; then, for each line `END_NS TAPE` on standard input, it runs until the end, writes
the moments of its runs to the tape and says `done`.
"""

import json
import sys
from time import monotonic_ns

import numpy as np
import onnxruntime as ort

if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    feed = {told["input"]: np.repeat(np.load(sys.argv[2]), told["batch"], axis=0)}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    run = ort.InferenceSession(told["path"], options, providers=["CPUExecutionProvider"]).run
    run(None, feed)
    print("ready", flush=True)
    for line in sys.stdin:
        end, path = line.split()
        end_ns = int(end)
        moments = [monotonic_ns()]
        while moments[-1] < end_ns:
            run(None, feed)
            moments.append(monotonic_ns())
        ends = np.array(moments, np.int64)
        np.stack([ends[:-1], ends[1:]], axis=1).tofile(path)
        print("done", flush=True)
