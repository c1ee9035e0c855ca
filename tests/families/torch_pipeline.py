"""A small text-to-image pipeline in plain PyTorch, for families that diffusers doesn't have."""

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class TorchPipeline(DiffusionPipeline, TextualInversionLoaderMixin):
    """Called as diffusers' own pipelines are; `feeds` says what a family's denoiser takes beside latents and time."""

    def __init__(self, vae, text_encoder, tokenizer, unet, scheduler):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)

    def encode_prompt(self, prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt=None):
        def encoded(text):
            ids = self.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
            output = self.text_encoder(ids.input_ids, return_dict=True)
            return output.last_hidden_state, output.pooler_output

        states, pooled = encoded(prompt)
        if not do_classifier_free_guidance:
            return states, None, pooled, None
        negative_states, negative_pooled = encoded(negative_prompt or "")
        return states, negative_states, pooled, negative_pooled

    def feeds(self, states, pooled, height, width):
        return {"encoder_hidden_states": states}

    @torch.no_grad()
    def __call__(
        self,
        height,
        width,
        num_inference_steps,
        guidance_scale,
        num_images_per_prompt,
        latents,
        generator,
        output_type,
        callback_on_step_end,
        prompt_embeds,
        pooled_prompt_embeds,
        negative_prompt_embeds=None,
        negative_pooled_prompt_embeds=None,
    ):
        guided, self._interrupt = guidance_scale > 1, False
        states = [prompt_embeds] if not guided else [negative_prompt_embeds, prompt_embeds]
        pooled = [pooled_prompt_embeds] if not guided else [negative_pooled_prompt_embeds, pooled_prompt_embeds]
        rows = [torch.cat(one).repeat_interleave(num_images_per_prompt, 0) for one in (states, pooled)]
        given = self.feeds(*rows, height, width)
        self.scheduler.set_timesteps(num_inference_steps)
        latents = latents * self.scheduler.init_noise_sigma
        for index, timestep in enumerate(self.scheduler.timesteps):
            if self._interrupt:
                continue
            scaled = self.scheduler.scale_model_input(latents, timestep)
            out = self.unet(torch.cat([scaled] * 2) if guided else scaled, timestep, **given, return_dict=False)[0]
            if guided:
                negative, positive = out.chunk(2)
                out = negative + guidance_scale * (positive - negative)
            latents = self.scheduler.step(out, timestep, latents, generator=generator, return_dict=False)[0]
            callback_on_step_end(self, index, timestep, {"latents": latents})
        if output_type == "latent":
            return Drawn(latents)
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return Drawn((decoded / 2 + 0.5).clamp(0, 1).movedim(-3, -1).numpy())


class Drawn:
    """What was drawn."""

    def __init__(self, images):
        self.images = images
