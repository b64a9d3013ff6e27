"""What clients, router and workers share: memory, slots, layouts and the wire of each lane.

Nothing is imported here: the supervisor uses `shm.control` and must not pull in numpy by the way.
"""
