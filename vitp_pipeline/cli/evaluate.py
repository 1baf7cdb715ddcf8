"""vitp evaluate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitp_pipeline.cli import options
from vitp_pipeline.runtime.output import show_json


def register(app: typer.Typer) -> None:
    @app.command("evaluate", cls=options.with_keys("evaluate", points=options.point_policies))
    def evaluate(
        recipe: options.RecipeName,
        data_root: options.DataRoot,
        out: options.Out,
        alpha: Annotated[
            str | None,
            typer.Option(
                help="Weight of the classifier, or first:last:step for a sweep in one pass; 0 = the generator alone, "
                "without any classifier.",
                metavar="A",
            ),
        ] = None,
        json: options.JsonFile = None,
        shard: options.Shard = None,
        name: options.ClassifierName = None,
        classifier: options.ClassifierFile = None,
        allow_missing: Annotated[bool, typer.Option(help="Report metrics even if some images are missing.")] = False,
        points: options.Points = None,
        device: options.Device = None,
        changes: options.Changes = None,
        retry_failed: options.RetryFailed = False,
        stream: Annotated[
            bool,
            typer.Option(
                "--stream", help="Also run generator and classifier, image by image; store neither masks nor scores."
            ),
        ] = False,
        by_class: Annotated[
            bool, typer.Option("--by-class", help="Also print a table of all classes: generator, fused, upper bounds.")
        ] = False,
    ) -> None:
        """4. Fuse generator and classifier scores; report mIoU, PQ, AP on request, and upper bounds.

        With --shard it counts one shard and prints no metrics (with --json -, a summary like the other stages'); a last
        call without --shard adds up all shards.

        vitp evaluate camvid --data-root data/camvid --out runs/camvid

        vitp evaluate mine --data-root data --out run --alpha 0:1:0.1 --json a.json

        vitp evaluate camvid --data-root data/camvid --out runs/camvid --by-class

        With --alpha 0 only generate-proposals has to have run; the figures are the generator's own:

        vitp evaluate camvid --data-root data/camvid --out runs/camvid --alpha 0

        Many views of an image (scales, flips, windows) can take a gigabyte of masks. --stream stores none, and needs
        only a classifier:

        vitp evaluate mine --data-root data --out run --stream --set flip=true
        """
        from dataclasses import replace

        from vitp_pipeline.cli.document import documented
        from vitp_pipeline.config.files import absolute
        from vitp_pipeline.config.flags import check_decimal_sign, divide, parse_alphas, parse_changes
        from vitp_pipeline.config.recipe import load_recipe
        from vitp_pipeline.config.settings import ClassifySettings, EvaluateSettings, ProposalSettings
        from vitp_pipeline.errors import PartialError
        from vitp_pipeline.evaluation.per_class import print_by_class
        from vitp_pipeline.evaluation.summary import print_result, result_of, to_json
        from vitp_pipeline.execution.sharding import choose_shard
        from vitp_pipeline.runtime.progress import say
        from vitp_pipeline.stages.evaluate import evaluate_shards, prepare
        from vitp_pipeline.storage.atomic_files import write_whole

        loaded, choice = load_recipe(recipe), choose_shard(shard)
        check_decimal_sign(alpha or "")
        alphas = parse_alphas(alpha) if alpha else ()
        flags = {"alpha": alphas[0] if len(alphas) == 1 else None, "device": device}
        # scores are found by the settings that classify made them with, so its keys can be given here too
        kinds = (EvaluateSettings, ClassifySettings, *([ProposalSettings] if stream else []))
        own, of_classify, *of_proposals = divide(parse_changes(changes), *kinds)
        settings = loaded.stage(EvaluateSettings, **flags | own)
        if "alpha" in own:  # counts as asked for even where it is the default
            alphas = (*alphas, settings.alpha)
        file = absolute(classifier)
        classify = loaded.stage(ClassifySettings, **{"name": name, "classifier": file, "points": points} | of_classify)
        if stream:
            from vitp_pipeline.stages.stream import Stream

            generate = loaded.stage(ProposalSettings, **{"device": device} | of_proposals[0])
            classify = replace(classify, device=device or classify.device)
            streamed = Stream(loaded, generate, classify, settings, alphas, data_root, out, choice)
            evaluation = streamed.evaluation
            outcome = streamed.shards(choice.within(evaluation.run.shards), retry_failed)
        else:
            evaluation = prepare(loaded, settings, classify, alphas, data_root, out, choice)
            shards = choice.within(evaluation.run.shards)
            if choice.index is None and allow_missing:
                # take what is there; what is not finished is reported below
                worked = evaluation.class_scores or evaluation.proposals.run
                shards = [s for s in shards if worked.finished(s)]
            outcome = evaluate_shards(evaluation, settings, classify, shards, retry_failed)
        if choice.index is not None:
            with documented(json == Path("-")) as document:
                document.give(outcome)
                outcome.report("evaluate")
            return
        result = result_of(evaluation, allow_missing)
        if json == Path("-"):
            show_json(result, indent=2, sort_keys=True)
        else:
            print_result(result)
            if by_class:
                print_by_class(result)
        if json not in (None, Path("-")):
            write_whole(json, to_json(result))
            say(f"figures written to {json}")
        images = result["images"]
        if images["measured"] < images["of"]:
            raise PartialError(f"evaluate: {images['measured']} of {images['of']} images are measured")
