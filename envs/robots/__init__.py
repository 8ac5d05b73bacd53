"""Robots: one interface for the simulated arm, a remote one and the physical one.

    interface   what a robot is                      safety      SafeRobot, around every one of them
    limits      what an arm can and may do           guard       its states: follow, hold, fault
    gate        commands that are wrong              clamp       commands that ask for too much
    sender      what came before a command           senses      is what is measured to be trusted?
    watch       each sensor by itself                posture     joint limits and singularities
    steering    from goal to velocity                shaping     speeds that can still stop
    actuation   what is sent, and stops              kinematics  of a Franka, and rotations
    mujoco      the simulated arm (simulated_*, motion)
    franky      a Franka (franky_*)                  droid       DROID's RobotEnv (droid_*)
    server      a robot for another machine (service, protocol, messages, lease)
    client      a robot on another machine (channel, clock_offset)
    wire        what any message is made of          access      who may connect
    camera_sources  USB, network and recorded ones   ros2        twists only, never run with ROS 2
    recorder    the flight recorder (recording*, recorded)
    fault_proxy a bad network, for tests

Where arms are driven from is `worldmodel.driving`. Set-up, units and frames: docs/robots.md.
"""
