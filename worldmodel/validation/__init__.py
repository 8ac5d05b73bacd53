"""Robot-free validation: will a model plan? Asked of held-out recordings alone.

    held_out          windows of latents, poses and actions that the model was not trained on
    latent_errors     how well it predicts, beside copying and beside wrong actions
    action_ranking    does it tell the action that was done from others?
    energy_argmin     how far from that action does its energy end a search?
    joint_argmin      the same of an arm that speaks in joints
    open_loop         plans of several steps, scored as in JEPA-WMs
    camera_rotation   are its moves turned, because the camera stands elsewhere?
    plots             a picture of each

`worldmodel.validate` runs them all. Every measure takes a `WorldModel` and `HeldOut` windows, so a
training loop can call it on its own cached latents.
"""
