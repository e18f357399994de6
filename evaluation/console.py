"""What the evaluator prints: a table of the classes, and a line for each option."""

from typing import Any

MAX_ROWS = 100  # classes in the table; the report has them all


def print_evaluation(evaluation: dict[str, Any]) -> None:
    """Print the content of evaluation.json that a user looks for first."""
    print_table(evaluation)
    low, high = evaluation["accuracy_interval"]
    error = 100 * evaluation["calibration"]["expected_calibration_error"]
    top3 = f"top-3 accuracy {evaluation['top3_accuracy']:.2f}%; " if len(evaluation["per_class"]) > 3 else ""
    print(f"\n95% confidence interval {low:.2f} to {high:.2f}%; {top3}expected calibration error {error:.2f}%")
    steps = f", {evaluation['steps_since_epoch']} steps on" if evaluation["steps_since_epoch"] else ""
    print(f"Test loss {evaluation['loss']:.4f}; {evaluation['model_name']} of epoch {evaluation['epoch']}{steps}.")
    if evaluation["evaluation_precision"] != evaluation["precision"]:
        trained_in, used = evaluation["precision"], evaluation["evaluation_precision"]
        print(f"Trained in {trained_in}, evaluated in {used}: this device has no {trained_in} arithmetic.")
    if evaluation["chosen_on"] == "test":
        print("The epoch was chosen on these same images: the accuracy is slightly optimistic. --val-size avoids this.")
    if flip := evaluation.get("flip"):
        print(
            f"Predictions averaged with those for the mirror images: {flip['accuracy']:.2f}%, loss {flip['loss']:.4f}"
        )
    for name, results in evaluation.get("corruptions", {}).items():
        accuracies = ", ".join(f"{row['accuracy']:.2f}% at {row['strength']:g}" for row in results)
        print(f"Under {name}: {accuracies}")
    if other := evaluation.get("comparison"):
        print(f"Second model, {other['checkpoint']} ({other['model_name']}): {other['accuracy']:.2f}%")
        print_difference(other)


def print_difference(comparison: dict[str, Any]) -> None:
    """Print what metrics.compare found."""
    low, high = comparison["difference_interval"]
    only, other_only = comparison["num_only_this_right"], comparison["num_only_other_right"]
    print(
        f"First minus second: {comparison['difference']:+.2f} points "
        f"(95% confidence interval {low:+.2f} to {high:+.2f}).\n"
        f"Only the first gets {only} images right, only the second {other_only}: p = {comparison['mcnemar_p']:.2g} "
        "(McNemar's exact test)."
    )


def print_table(evaluation: dict[str, Any]) -> None:
    """Print the accuracy of each class and of all images."""
    rows = evaluation["per_class"]
    correct = sum(row["num_correct"] for row in rows)
    width = max(len("all images"), *(len(row["name"]) for row in rows))
    if len(rows) > MAX_ROWS:
        print(f"\nThe {MAX_ROWS} classes of {len(rows):,} with the lowest accuracy:")
        rows = sorted(rows, key=lambda row: row["accuracy"])[:MAX_ROWS]
    print(f"\n{'class':<{width}}  images  correct  accuracy\n{'-' * (width + 27)}")
    for row in rows:
        print(f"{row['name']:<{width}}  {row['num_images']:>6}  {row['num_correct']:>7}  {row['accuracy']:>7.2f}%")
    print("-" * (width + 27))
    print(f"{'all images':<{width}}  {evaluation['num_images']:>6}  {correct:>7}  {evaluation['accuracy']:>7.2f}%")
