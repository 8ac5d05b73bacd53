"""The fault table: what the arm does when something breaks while it moves.

python -m benchmarks.faults                      all rows, to benchmarks/results/faults.json
python -m benchmarks.faults --only frozen stop   rows whose name holds one of these words

planner      a planner that needs no model, driving sideways and back
robot_side   the simulated arm in its envelope, faults to order, and what it did
robot_pc     the same in a process of its own, served on the network
planner_pc   the planner in a process of its own
rigs         planner and arm together: in one process, in two, or over a Franka's own protocol
verdict      what a row says
rows         faults of sensors, planner, commands and arm
network_rows faults of the network and of whole processes
fci_rows     the driver of a Franka that dies or stands still
"""
