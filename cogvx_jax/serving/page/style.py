"""How the page looks beside Gradio's own: cards of videos, and what must fit on a phone."""

CSS = """
#cogvx-head{align-items:center;justify-content:space-between;flex-wrap:wrap}
#cogvx-head>*{flex:0 1 auto;width:auto}
#cogvx-main{display:grid;gap:var(--layout-gap,16px);grid-template-columns:minmax(0,5fr) minmax(0,6fr);
  grid-template-rows:auto 1fr;grid-template-areas:"form results" "more results"}
#cogvx-form{grid-area:form}
#cogvx-results{grid-area:results}
#cogvx-more{grid-area:more}
#cogvx-main>*{min-width:0!important}
@media (max-width:860px){
  #cogvx-main{grid-template-columns:minmax(0,1fr);grid-template-rows:none;
    grid-template-areas:"form" "results" "more"}
}
.cogvx-card{border:1px solid var(--border-color-primary);border-radius:10px;padding:10px;
  background:var(--block-background-fill);display:flex;flex-direction:column;gap:6px;min-width:0}
.cogvx-card p{margin:0;overflow-wrap:anywhere}
.cogvx-frame{background:#0002;border-radius:6px;overflow:hidden;width:100%;max-height:60vh;display:flex;
  justify-content:center}
.cogvx-frame video,.cogvx-frame img{width:100%;height:100%;object-fit:contain;display:block}
.cogvx-frame:empty{max-height:7rem}
.cogvx-card progress{width:100%;height:8px;accent-color:var(--color-accent)}
.cogvx-status{font-weight:600}
.cogvx-failed .cogvx-status{color:var(--error-text-color,#b91c1c)}
.cogvx-prompt{max-height:6em;overflow:auto}
.cogvx-facts,.cogvx-note,.cogvx-empty,.cogvx-help *{color:var(--body-text-color-subdued)}
.cogvx-facts,.cogvx-note,.cogvx-empty,.cogvx-help p{font-size:13px}
#cogvx-notice:not(:has(.cogvx-notice)),.cogvx-one:not(:has(.cogvx-card)){display:none}
.cogvx-buttons{display:flex;flex-wrap:wrap;gap:6px}
.cogvx-buttons button,.cogvx-buttons a{border:1px solid var(--border-color-primary);border-radius:8px;
  padding:7px 11px;font-size:.9em;line-height:1.2;font-weight:500;background:var(--button-secondary-background-fill);
  color:var(--button-secondary-text-color);cursor:pointer;text-decoration:none}
.cogvx-buttons button:hover,.cogvx-buttons a:hover{border-color:var(--color-accent)}
.cogvx-history{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:10px}
.cogvx-notice{border-left:4px solid var(--color-accent);padding:6px 12px;border-radius:4px;
  background:var(--block-background-fill)}
.cogvx-notice p{margin:2px 0;overflow-wrap:anywhere}
.cogvx-wrong{border-color:var(--error-border-color,#b91c1c)}
.cogvx-empty{padding:8px 2px}
#cogvx-cards .html-container,#cogvx-history .html-container{padding:0!important}
#cogvx-cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:10px}
@media (max-width:640px){
  .gradio-container{padding:8px!important}
  .gradio-container main{padding:8px 4px!important}
  .cogvx-buttons button,.cogvx-buttons a{padding:10px 13px}
  .cogvx-history{display:flex;overflow-x:auto;scroll-snap-type:x proximity}
  .cogvx-history>*{flex:0 0 72%;scroll-snap-align:start}
}
"""

# A click on a button of a card is an event of the page, with what is to be done and with which job.
CLICKS = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (button && element.contains(button)) trigger('pick', {what: button.dataset.do, id: button.dataset.id});
});
"""
