"""The supervisor: spawns router and workers, replaces the dead, answers operators; touches no request.

`machine` decides and is pure; `service` polls, decodes, calls and performs, in one thread. Nothing here imports zmq,
numpy or onnxruntime or maps memory: the process that must not die carries nothing that could kill it.
"""
