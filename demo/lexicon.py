"""The words of the demo's sentences, by kind, and the rules that inflect them. All nouns are given in the singular."""

import re

MASCULINE: dict[str, str] = {
    "people": """menino professor médico vizinho pintor padeiro jardineiro motorista cantor tio avô primo irmão filho
    amigo aluno advogado engenheiro cozinheiro pescador carteiro dentista enfermeiro garçom porteiro policial bombeiro
    músico pianista ator diretor escritor poeta jornalista fotógrafo arquiteto mecânico eletricista pedreiro
    marceneiro alfaiate barbeiro sapateiro vendedor gerente chefe colega sobrinho neto marido noivo namorado padrinho
    bebê rapaz senhor juiz prefeito soldado capitão marinheiro piloto astronauta cientista químico biólogo veterinário
    zelador goleiro jogador treinador atleta nadador ciclista turista estudante fazendeiro vaqueiro açougueiro
    feirante palhaço mágico rei príncipe gigante pirata detetive ladrão guarda relojoeiro bibliotecário tradutor
    programador""",
    "animals": """cachorro gato cavalo burro boi touro porco pato galo peru coelho rato esquilo macaco leão tigre lobo
    urso elefante camelo veado jacaré sapo peixe tubarão polvo caranguejo camarão papagaio tucano beija-flor pardal
    pombo gavião urubu pinguim avestruz morcego besouro grilo mosquito gafanhoto cordeiro bezerro filhote tatu
    tamanduá lagarto caracol canário periquito golfinho""",
    "foods": """pão bolo queijo ovo frango peixe bife abacaxi mamão limão melão morango pêssego figo coco caju
    maracujá abacate tomate pepino pimentão quiabo chuchu repolho brócolis sorvete pudim pastel biscoito chocolate
    sanduíche sonho doce salgado brigadeiro hambúrguer palmito""",
    "portions": """arroz feijão café leite suco chá vinho macarrão açúcar sal azeite vinagre mel iogurte creme milho
    alho presunto bacalhau caldo molho mingau trigo cacau amendoim gengibre orégano fermento""",
    "objects": """livro carro relógio caderno lápis telefone computador violão piano tambor prato copo garfo espelho
    quadro tapete sofá armário banco colchão travesseiro cobertor lençol martelo serrote alicate parafuso prego balde
    sabonete pente barco navio avião trem ônibus caminhão trator foguete brinquedo boneco balão anel colar brinco
    pincel papel envelope jornal mapa dicionário bilhete cartão presente pacote saco baú cofre cadeado motor pneu
    volante farol rádio televisor microfone vaso jarro bule fogão forno liquidificador ventilador aquecedor abajur
    tijolo cimento telhado portão muro degrau remo anzol guarda-chuva binóculo telescópio ímã termômetro remédio
    violino saxofone pandeiro chocalho apito sino troféu diploma retrato álbum cinzeiro isqueiro fósforo barbante
    novelo botão zíper alfinete carrinho patinete tabuleiro dado baralho calendário grampeador teclado monitor
    carregador""",
    "clothes": """casaco vestido chapéu sapato tênis chinelo lenço cinto boné pijama avental uniforme terno cachecol
    paletó macacão colete roupão biquíni maiô short""",
    "places": """mercado parque banco hospital museu teatro cinema hotel restaurante aeroporto porto centro bairro
    sítio quintal jardim escritório correio shopping estádio clube ginásio zoológico circo castelo palácio farol rio
    lago mar bosque morro vale deserto acampamento supermercado armazém depósito consultório laboratório cartório
    tribunal cemitério mosteiro estacionamento posto terminal pátio corredor porão sótão banheiro quarto apartamento
    prédio condomínio vilarejo litoral pomar celeiro estábulo galinheiro""",
}
FEMININE: dict[str, str] = {
    "people": """menina professora médica vizinha pintora padeira jardineira motorista cantora tia avó prima irmã
    filha amiga aluna advogada engenheira cozinheira dentista enfermeira garçonete policial bombeira musicista
    pianista atriz diretora escritora poetisa jornalista fotógrafa arquiteta costureira secretária cabeleireira
    vendedora gerente colega sobrinha neta esposa noiva namorada madrinha criança moça senhora juíza prefeita rainha
    princesa fada bruxa bailarina cientista química bióloga veterinária faxineira babá goleira jogadora treinadora
    atleta nadadora ciclista turista estudante fazendeira florista feirante detetive farmacêutica astrônoma
    bibliotecária tradutora programadora viúva mulher testemunha vítima escultora lavadeira rendeira""",
    "animals": """cachorra gata égua vaca cabra ovelha porca galinha pata coelha raposa onça leoa girafa zebra baleia
    tartaruga cobra lagartixa perereca aranha abelha vespa formiga borboleta mosca barata joaninha cigarra minhoca
    andorinha coruja águia garça arara gaivota pomba lhama capivara anta preguiça foca lontra sardinha lagosta ostra
    serpente mula libélula""",
    "foods": """banana laranja maçã uva pera manga goiaba melancia ameixa cereja jabuticaba tangerina cenoura batata
    cebola abóbora beterraba berinjela abobrinha alface couve pimenta torta pizza empada coxinha tapioca panqueca
    bolacha bala rosquinha sobremesa salada sopa omelete azeitona castanha noz amora framboesa pitanga acerola broa
    rapadura cocada paçoca""",
    "portions": """água farinha carne manteiga margarina limonada canela salsa hortelã gelatina geleia nata linguiça
    salsicha mandioca ervilha lentilha maionese mostarda aveia cerveja cachaça vitamina canja feijoada moqueca polenta
    farofa pipoca cebolinha""",
    "objects": """mesa cadeira cama janela porta chave caneta caixa carta bola boneca bicicleta motocicleta câmera
    lâmpada vela panela faca colher xícara garrafa jarra toalha esponja vassoura escova tesoura agulha linha corda
    escada rede mala mochila carteira sacola cesta gaveta estante poltrona cortina almofada geladeira máquina torneira
    furadeira lanterna pilha bateria antena tela tecla folha revista página fotografia moldura tinta borracha régua
    cola fita etiqueta moeda nota joia pulseira coroa medalha bandeira espada flecha âncora canoa lancha jangada
    carroça carruagem ambulância locomotiva roda buzina flauta harpa sanfona guitarra trombeta gaita bússola lupa
    balança peneira tigela frigideira chaleira bandeja lixeira enxada pá foice semente flor rosa orquídea margarida
    árvore palmeira samambaia pedra concha pena estátua escultura máscara pipa raquete peteca seringa vacina receita
    apostila enciclopédia partitura agenda calculadora impressora ferramenta engrenagem mangueira""",
    "clothes": """camisa calça saia blusa jaqueta meia bota sandália gravata luva bermuda camiseta roupa capa fantasia
    touca sapatilha bolsa faixa""",
    "places": """casa escola padaria farmácia igreja praça rua avenida praia fazenda cidade vila montanha floresta
    ilha ponte estação rodoviária biblioteca livraria sorveteria oficina loja feira fábrica universidade faculdade
    creche delegacia prefeitura clínica academia piscina cozinha sala varanda garagem sacada cabana caverna cachoeira
    lagoa trilha estrada rodovia fronteira capela catedral torre muralha mina pousada lanchonete churrascaria
    papelaria sapataria barbearia lavanderia peixaria quitanda horta plantação""",
}
ADJECTIVES: dict[str, str] = {
    "people": """alto baixo jovem velho alegre triste calmo nervoso simpático educado gentil tímido corajoso
    preguiçoso esperto inteligente distraído cansado feliz doente famoso rico pobre elegante forte fraco magro curioso
    teimoso sincero honesto generoso paciente impaciente orgulhoso ciumento vaidoso engraçado sério quieto barulhento
    animado preocupado furioso assustado surpreso atrasado pontual valente sábio ingênuo mentiroso leal amável
    brincalhão""",
    "animals": """manso feroz veloz lento faminto selvagem doméstico enorme minúsculo peludo brincalhão arisco dócil
    esperto bravo gordo magro sonolento perdido raro colorido pintado malhado""",
    "foods": """maduro verde doce azedo fresco quente frio gostoso delicioso enorme pequeno podre congelado crocante
    amargo macio recheado cozido assado picante saboroso""",
    "portions": """fresco quente frio gostoso delicioso caseiro caro barato puro orgânico importado saboroso""",
    "objects": """novo velho grande pequeno bonito feio caro barato pesado leve quebrado limpo sujo comprido curto
    largo estreito redondo quadrado antigo moderno colorido azul verde branco preto vermelho amarelo roxo dourado
    prateado cinzento macio duro frágil brilhante transparente vazio cheio útil inútil perfeito simples estranho raro
    comum importado usado perdido roubado fino grosso gigante delicado precioso enferrujado molhado seco liso áspero
    portátil luxuoso""",
    "clothes": """novo velho bonito elegante apertado largo justo curto comprido azul verde branco preto vermelho
    amarelo roxo listrado estampado rasgado molhado sujo limpo confortável quente leve bordado florido""",
    "places": """antigo moderno grande pequeno bonito tranquilo barulhento movimentado escuro iluminado famoso
    perigoso seguro limpo sujo vazio cheio distante próximo histórico imenso deserto charmoso abandonado pitoresco
    florido industrial central misterioso colonial""",
}
VERBS: dict[str, str] = {
    "objects": """comprar vender procurar encontrar perder guardar mostrar escolher levar carregar embrulhar entregar
    receber devolver pagar consertar quebrar limpar pintar fabricar emprestar roubar esconder montar desenhar
    fotografar admirar arrumar alugar trocar usar empurrar puxar examinar desmontar decorar colecionar oferecer
    derrubar descobrir transportar instalar lavar pesar medir polir reformar testar observar jogar enterrar""",
    "foods": """comprar vender preparar comer provar servir dividir cortar lavar assar temperar experimentar recusar
    devorar buscar descascar congelar mastigar colher cheirar engolir""",
    "portions": """comprar vender preparar provar servir misturar temperar esquentar buscar derramar recusar
    experimentar economizar ferver""",
    "people": """ajudar visitar chamar abraçar conhecer encontrar entrevistar esperar ensinar escutar cumprimentar
    convidar beijar acordar elogiar criticar perdoar agradar proteger enganar surpreender procurar reconhecer salvar
    defender assustar acompanhar contratar demitir imitar irritar""",
    "animals": """alimentar adotar assustar acariciar encontrar observar perseguir espantar criar vender comprar
    salvar fotografar desenhar proteger soltar prender chamar amar estudar""",
    "clothes": """comprar vender vestir usar costurar lavar passar dobrar experimentar guardar rasgar tirar emprestar
    bordar pendurar secar escolher amassar""",
    "alone": """dormir correr cantar dançar chorar trabalhar estudar descansar viajar nadar pular gritar tossir
    espirrar rezar cozinhar brincar caminhar desaparecer telefonar almoçar jantar acordar tropeçar reclamar fumar
    esperar escrever emagrecer envelhecer desmaiar desistir mergulhar pescar assobiar bocejar sonhar cochilar aplaudir
    pensar resmungar adoecer escorregar""",
    "sounds": "correr pular dormir desaparecer descansar brincar comer beber cheirar respirar morder atacar escapar",
}
# Right, though pyspellchecker's list, which is mostly of Portugal, lacks them.
BRAZILIAN = """garçom garçons goleiro goleiros goleira goleiras bebês beija-flor beija-flores tamanduá tamanduás
periquitos quiabo quiabos brócolis mamões limões palmitos mingau orégano ônibus liquidificador liquidificadores abajur
abajures guarda-chuva guarda-chuvas ímã ímãs termômetro termômetros zíper zíperes patinete patinetes grampeador
grampeadores tênis macacões maiô maiôs short shorts shoppings sótãos garçonete garçonetes musicista musicistas
faxineira faxineiras poetisas babás astrônoma astrônomas perereca pererecas lhama lhamas capivara capivaras joaninhas
libélulas jabuticaba jabuticabas berinjela berinjelas abobrinha abobrinhas coxinha coxinhas rosquinha rosquinhas
acerola acerolas paçoca paçocas rapaduras framboesas moqueca polenta câmera câmeras furadeira furadeiras samambaia
samambaias peteca petecas apostila apostilas bermuda bermudas sorveteria sorveterias lanchonete lanchonetes lavanderia
lavanderias quitanda quitandas ingênuo ingênua ingênuos ingênuas ariscos crocante crocantes cochila cochilam cochilou
cochilaram cochilava cochilavam cochilei cochilando cochilar anteontem segunda-feira terça-feira quarta-feira
quinta-feira sexta-feira quilômetros cinquenta dezesseis dezessete dezenove trovejou ventou""".split()
IRREGULAR_PLURALS = {
    "pão": "pães",
    "cão": "cães",
    "capitão": "capitães",
    "irmão": "irmãos",
    "mão": "mãos",
    "maçã": "maçãs",
    "lápis": "lápis",
    "tênis": "tênis",
    "ônibus": "ônibus",
    "brócolis": "brócolis",
    "simples": "simples",
    "guarda-chuva": "guarda-chuvas",
    "beija-flor": "beija-flores",
    "réptil": "répteis",
    "fóssil": "fósseis",
    "útil": "úteis",
    "inútil": "inúteis",
    "frágil": "frágeis",
    "portátil": "portáteis",
    "dócil": "dóceis",
    "juiz": "juízes",
    "sótão": "sótãos",
}
IRREGULAR_FEMININES = {"brincalhão": "brincalhona", "nu": "nua", "mau": "má"}
MONTHS = "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro".split()
WEEKDAYS = [
    ("a", "segunda-feira"),
    ("a", "terça-feira"),
    ("a", "quarta-feira"),
    ("a", "quinta-feira"),
    ("a", "sexta-feira"),
    ("o", "sábado"),
    ("o", "domingo"),
]
CITIES = """Recife Salvador Fortaleza Manaus Curitiba Brasília Goiânia Natal Aracaju Maceió Teresina Palmas Macapá
Belém Campinas Santos Sorocaba Londrina Maringá Joinville Blumenau Pelotas Gramado Ouro_Preto Tiradentes Diamantina
Uberlândia Uberaba Juiz_de_Fora Petrópolis Niterói Paraty Búzios Vitória Ilhéus Itabuna Olinda Caruaru Petrolina
Mossoró Sobral Santarém Parintins Cuiabá Campo_Grande Dourados Bonito Corumbá Anápolis Pirenópolis São_Paulo São_Luís
Belo_Horizonte Porto_Alegre Florianópolis Rio_Branco Porto_Velho Boa_Vista Campina_Grande João_Pessoa Jundiaí
Guarulhos Osasco Bauru Franca Piracicaba Taubaté Cabo_Frio Guarapari Chapecó Lages Bagé Torres Lisboa Madri Paris
Londres Roma Berlim Tóquio Pequim Moscou Atenas Viena Havana Bogotá Lima Montevidéu""".split()
# Those that take no article.
STATES = "Alagoas Goiás Minas_Gerais Pernambuco Rondônia Roraima Santa_Catarina São_Paulo Sergipe Mato_Grosso".split()
MANNERS = (
    "devagar, depressa, com calma, com cuidado, sem pressa, em silêncio, de repente, às pressas, com alegria, "
    "com raiva, com paciência, por engano, de novo, outra vez, sem parar, todos os dias, o tempo todo, como sempre"
).split(", ")


def plural(word: str) -> str:
    """The plural of a noun or adjective."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word.endswith("ão"):
        return word[:-2] + "ões"
    if word.endswith("m"):
        return word[:-1] + "ns"
    if word.endswith(("r", "z", "n", "ês")):
        return word.replace("ês", "es") + "es"
    if word.endswith("ável"):
        return word[:-1] + "is"
    if word.endswith("el"):
        return word[:-2] + "éis"
    if word.endswith("al"):
        return word[:-1] + "is"
    if word.endswith("ol"):
        return word[:-2] + "óis"
    if word.endswith("ul"):
        return word[:-1] + "is"
    if word.endswith("il"):
        return word[:-1] + "s"
    return word + "s"


def feminine(adjective: str) -> str:
    """The feminine of an adjective that is given in the masculine."""
    if adjective in IRREGULAR_FEMININES:
        return IRREGULAR_FEMININES[adjective]
    if adjective.endswith("o") and not adjective.endswith("ão"):
        return adjective[:-1] + "a"
    return adjective


def agree(adjective: str, gender: str, many: bool) -> str:
    form = feminine(adjective) if gender == "f" else adjective
    return plural(form) if many else form


# Endings by conjugation: present, preterite, imperfect; he, they; then I in the preterite and the gerund.
_ENDINGS = {
    "ar": ("a", "am", "ou", "aram", "ava", "avam", "ei", "ando"),
    "er": ("e", "em", "eu", "eram", "ia", "iam", "i", "endo"),
    "ir": ("e", "em", "iu", "iram", "ia", "iam", "i", "indo"),
}
TENSES = ("present", "past", "imperfect")
# The present of verbs whose stem changes; all their other forms used here are regular.
_PRESENTS = {
    "servir": ("serve", "servem"),
    "vestir": ("veste", "vestem"),
    "dormir": ("dorme", "dormem"),
    "tossir": ("tosse", "tossem"),
    "engolir": ("engole", "engolem"),
    "perseguir": ("persegue", "perseguem"),
    "descobrir": ("descobre", "descobrem"),
    "polir": ("pule", "pulem"),
    "odiar": ("odeia", "odeiam"),
}


def conjugate(verb: str, tense: str, many: bool) -> str:
    """The third person of a verb."""
    if tense == "present" and verb in _PRESENTS:
        return _PRESENTS[verb][many]
    return verb[:-2] + _ENDINGS[verb[-2:]][2 * TENSES.index(tense) + many]


def first_person(verb: str) -> str:
    """`I` in the past: comprei, bebi, fiquei."""
    stem, ending = verb[:-2], _ENDINGS[verb[-2:]][6]
    if verb.endswith("ar"):
        stem = re.sub("c$", "qu", re.sub("g$", "gu", stem)) if not stem.endswith("ç") else stem[:-1] + "c"
    return stem + ending


def gerund(verb: str) -> str:
    return verb[:-2] + _ENDINGS[verb[-2:]][7]
