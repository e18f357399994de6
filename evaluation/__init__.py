"""What a trained model does on the test images. Training imports nothing from here.

trained            a model rebuilt from its checkpoint, and its answers
metrics            accuracy, calibration, confusions: the numbers of evaluation.json
corruptions        the test images with noise, blur, brightness, JPEG, shift
mistakes           which images to show
attention          what a Vision Transformer looks at
evaluation_plots   one function a figure: how to draw what metrics and corruptions found
attention_plots    the same for what attention found
predictions        predictions.csv: what the model says of each image
run_record         what the JSON files in a run's folder say
comparable         whether runs saw the same images
comparison         several runs: rows over seeds, tables, the test of two runs
comparison_plots   the curves of several runs
tables             the tables of README.md and docs/, from results/
figures            all figures by name: how to read each, and which can be drawn
classify           pictures of the user's own
report             report.html, with the figures inside
model_card         README.md of exported weights
export             the model for other programs
exported           that what was exported gives the same answers
web                the page that classifies in a browser
console            what the evaluator prints
"""
