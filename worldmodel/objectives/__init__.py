"""Objectives of pretraining, one a file, all trained by the loop of `worldmodel.pretrain`.

- `interface`: what an objective is to the loop.
- `vjepa21`, `vjepa`, `ijepa`: masked latent prediction against a moving average of the encoder.
- `lewm`: next latents from actions, end to end from pixels, held open by `sigreg`.
- `barlow_twins`, `vicreg`: two views of a picture alike, held open by decorrelation.
- `state_reading`: proprio read from a frame; may be added to any of them.

They are chosen with `worldmodel pretrain objective=NAME` (docs/objectives.md).
"""
