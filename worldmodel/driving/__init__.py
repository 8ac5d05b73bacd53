"""Parts of `worldmodel.drive`, which drives an arm to a goal image.

    reference    where the tool is to be, and the velocities that lead there
    replanning   plans that begin where the arm will be
    workers      who makes them while the arm moves
    goals        goal images taken by the robot's own camera
    calibration  how the model's axes lie in the robot's base frame
    operator     confirmation before the first motion, and ways to stop
    replay       a recorded decision, made again and explained

None of them knows which robot it is.
"""
